from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from anyvla.cli.data.fit_codec import fit_codec, fit_codec_if_needed
from anyvla.cli.main import main
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.chunks import action_normalizer, read_chunks
from anyvla.policy import VLA
from anyvla.recipe import read
from anyvla.registry import representations
from anyvla.representations.bins import BinsCodec
from anyvla.representations.codec_report import check_codec, load_codec_report
from tests.small import DECODERS, NANO, REPRESENTATIONS, embodiment, episode, mixture

CODEC = {"name": "bins", "kind": "quantile", "bins": 16}


def write(folder: Path, **model: Any) -> Path:
    document = {
        "name": "small",
        "data": {"sources": [{"path": str(folder / "dataset")}]},
        "model": {
            "backbone": NANO,
            "history": "none",
            "fuser": "identity",
            "decoder": DECODERS["tokens"],
            "representation": CODEC,
            "chunk": 4,
        }
        | model,
        "training": {"steps": 3, "batch_size": 4, "log_every": 1},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipe")
    write_dataset(root / "dataset", embodiment(), [episode(9 + i, seed=i) for i in range(10)])
    write(root)
    return root


def run_it(folder: Path, run: Path, *options: str) -> int:
    return main(["data", "fit-codec", str(folder / "small.yaml"), "--out", str(run), *options])


def test_it_fits_to_nine_tenths_and_reports_both(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert run_it(folder, tmp_path, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.pop("folder") == str(tmp_path / "codec")
    assert facts == json.loads((tmp_path / "codec" / "report.json").read_text())
    data = mixture(folder / "dataset")
    assert facts["purpose"] == {
        "representation": {**CODEC, "mu": 255.0},
        "chunk": 4,
        "normalization": "quantile",
        "fingerprint": data.fingerprint,
    }
    assert (facts["vocabulary"], facts["length"]) == (16, 16)
    assert (facts["episodes"], facts["held_out_episodes"]) == (9, 1)
    assert facts["fitted"]["chunks"] + facts["held_out"]["chunks"] == data.datasets[0].lengths.sum()
    assert (facts["fitted"]["tokens_mean"], facts["fitted"]["compression"], facts["fitted"]["invalid"]) == (16, 1, 0)

    normalizer = action_normalizer(data, data.robots(), "quantile")
    chunks = read_chunks(data, normalizer, 4, [range(10)])
    representation = read(str(folder / "small.yaml")).model.representation
    codec = representation.build(4, embodiment().action, tmp_path / "codec")
    error = (codec.decode(codec.encode(chunks.actions))[0] - chunks.actions)[chunks.mask].abs()[:, :3]
    trips = [facts["fitted"]["errors"][0], facts["held_out"]["errors"][0]]
    assert error.max() == pytest.approx(max(t["normalized"]["max"] for t in trips), rel=1e-5)
    robot = error * normalizer.scale[0, :3]
    assert robot.max() == pytest.approx(max(t["robot"]["max"] for t in trips), rel=1e-4)


def test_a_report_of_before_the_american_spelling_is_read(folder: Path, tmp_path: Path) -> None:
    run_it(folder, tmp_path, "--json")
    path = tmp_path / "codec" / "report.json"
    report = load_codec_report(path.parent)
    path.write_text(path.read_text().replace('"normalized":', '"normalised":'))
    assert '"normalised":' in path.read_text()
    assert load_codec_report(path.parent) == report


def test_the_report_is_a_table(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run_it(folder, tmp_path) == 0
    shown = capsys.readouterr().out
    assert "bins for chunks of 4: 16 tokens, at most 16 a chunk" in shown
    for words in (
        "fitted, 9 episodes",
        "held out, 1 episodes",
        "16.0, at most 16",
        "position",
        "gripper",
        "widest bin",
    ):
        assert words in shown
    assert shown.splitlines()[-1] == str(tmp_path / "codec")


def test_a_codec_that_learns_nothing_is_measured_too(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert run_it(folder, tmp_path, "--json", "--model.representation.kind", "uniform") == 0
    facts = json.loads(capsys.readouterr().out)
    assert 0 < facts["held_out"]["errors"][0]["normalized"]["max"] <= 1 / 15 + 1e-6
    assert facts["facts"] == {}


def test_a_policy_reads_the_codec_that_was_written(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert run_it(folder, tmp_path) == 0
    assert main(["train", str(folder / "small.yaml"), "--out", str(tmp_path)]) == 0
    vla = VLA.load(tmp_path / "checkpoint")
    assert isinstance(vla.codec, BinsCodec)
    fresh = BinsCodec(vla.codec.config, 4, embodiment().action, tmp_path / "codec")
    assert torch.equal(vla.codec.values, fresh.values)


@pytest.mark.parametrize("name", [n for n in representations if n != "continuous"])
def test_every_representation_can_be_fitted_and_is_taken_by_training(name: str, folder: Path, tmp_path: Path) -> None:
    options = yaml.safe_dump(REPRESENTATIONS.get(name, {"name": name}), default_flow_style=True).strip()
    try:
        recipe = read(str(folder / "small.yaml"), ["--model.representation", options])
        made = fit_codec(recipe, tmp_path)
    except ImportError as error:
        pytest.skip(str(error))
    report, model, data = load_codec_report(made), recipe.model, mixture(folder / "dataset")
    assert report.fitted.invalid == 0
    assert report.fitted.tokens_max <= report.length
    assert report.fitted.compression >= 1
    space = embodiment().action
    check_codec(made, model.representation, model.chunk, space, model.normalization.action, data.fingerprint)
    assert model.representation.build(model.chunk, space, made).fitted


def test_a_second_fit_replaces_the_codec(folder: Path, tmp_path: Path) -> None:
    assert run_it(folder, tmp_path) == 0
    (tmp_path / "codec" / "old.txt").write_text("of the first fit")
    (tmp_path / "codec.tmp").mkdir()  # left by a killed command
    assert run_it(folder, tmp_path, "--model.representation.bins", "8") == 0
    assert load_codec_report(tmp_path / "codec").vocabulary == 8
    assert sorted(p.name for p in (tmp_path / "codec").iterdir()) == ["bins.json", "report.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["codec"]


def test_a_failed_fit_keeps_the_old_codec(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    assert run_it(folder, tmp_path) == 0
    before = (tmp_path / "codec" / "bins.json").read_bytes()

    def fails(*_: Any) -> None:
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr("anyvla.representations.codec_report.measure_round_trip", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        fit_codec(read(str(folder / "small.yaml"), ["--model.representation.bins", "8"]), tmp_path)
    assert (tmp_path / "codec" / "bins.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["codec"]


def test_one_episode_is_enough_but_none_is_held_out(tmp_path: Path, capsys: Any) -> None:
    write_dataset(tmp_path / "dataset", embodiment(), [episode(9)])
    write(tmp_path)
    assert run_it(tmp_path, tmp_path / "run") == 0
    assert load_codec_report(tmp_path / "run" / "codec").held_out is None
    assert "held out" not in capsys.readouterr().out


def test_many_chunks_are_thinned_out(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("anyvla.cli.data.fit_codec.MOST_CHUNKS", 40)
    assert run_it(folder, tmp_path) == 0
    report = load_codec_report(tmp_path / "codec")
    assert (report.fitted.chunks, report.held_out and report.held_out.chunks) == (40, 4)


def test_continuous_actions_have_no_codec(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert run_it(folder, tmp_path, "--model.representation", "continuous", "--model.decoder", "regression") == 1
    assert "there is no codec to fit. Choose one" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_scaling_without_a_range_is_refused(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert run_it(folder, tmp_path, "--model.normalization.action", "meanstd") == 1
    assert "meanstd puts a third of them outside: use quantile or minmax" in capsys.readouterr().err


def test_missing_data_is_an_error_that_names_the_command(tmp_path: Path, capsys: Any) -> None:
    options = ["--model.representation", "bins", "--model.decoder", "tokens"]
    assert main(["data", "fit-codec", "quickstart", "--out", str(tmp_path), *options]) == 1
    assert "anyvla data collect quickstart" in capsys.readouterr().err


def test_a_training_on_its_way_keeps_its_codec(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert run_it(folder, tmp_path) == 0
    (tmp_path / "train" / "step-00000002").mkdir(parents=True)
    assert run_it(folder, tmp_path) == 1
    assert "has begun with the codec at" in capsys.readouterr().err
    (tmp_path / "checkpoint").mkdir()  # the training is complete, and its checkpoint has a copy
    assert run_it(folder, tmp_path) == 0


def test_it_is_fitted_when_needed_only(folder: Path, tmp_path: Path) -> None:
    recipe = read(str(folder / "small.yaml"))
    fit_codec_if_needed(recipe, tmp_path)
    made = (tmp_path / "codec" / "report.json").stat().st_mtime_ns
    fit_codec_if_needed(recipe, tmp_path)
    assert (tmp_path / "codec" / "report.json").stat().st_mtime_ns == made
    fit_codec_if_needed(read(str(folder / "small.yaml"), ["--model.chunk", "2"]), tmp_path)
    assert load_codec_report(tmp_path / "codec").purpose.chunk == 2
    uniform = read(str(folder / "small.yaml"), ["--model.representation.kind", "uniform"])
    fit_codec_if_needed(uniform, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("tokens", [True, False])
def test_quickstart_fits_between_collecting_and_training(
    folder: Path, tmp_path: Path, monkeypatch: Any, tokens: bool
) -> None:
    seen: list[str] = []

    def train(recipe: Any, run: Path) -> None:
        seen.append("train with a codec" if (run / "codec" / "bins.json").is_file() else "train")

    summary = SimpleNamespace(to_dict=dict)
    monkeypatch.setattr("anyvla.cli.data.collect.collect", lambda *_: seen.append("collect"))
    monkeypatch.setattr("anyvla.cli.train.train", train)
    monkeypatch.setattr("anyvla.cli.evaluate.evaluate", lambda *_: seen.append("evaluate"))
    importlib.import_module("anyvla.report.chain")  # which would keep the name below if it were imported later
    monkeypatch.setattr("anyvla.report.run_report.write_report", lambda run: run / "index.html")
    monkeypatch.setattr("anyvla.evaluation.results.read_results", lambda _: [])
    monkeypatch.setattr("anyvla.evaluation.statistics.summarize", lambda _: summary)
    options = [] if tokens else ["--model.representation", "continuous", "--model.decoder", "regression"]
    assert main(["quickstart", "--recipe", str(folder / "small.yaml"), "--out", str(tmp_path), *options]) == 0
    assert seen == ["collect", "train with a codec" if tokens else "train", "evaluate"]
    stages = [json.loads(line)["stage"] for line in (tmp_path / "stages.jsonl").read_text().splitlines()]
    assert stages == ["collect", *(["codec"] if tokens else []), "train", "evaluate", "report"]
