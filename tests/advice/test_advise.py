"""Advice: rules, conflicts and studies, the rate, and recipes that build, are planned and train."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from anyvla.advice.advise import Advice, Decision, Request, advise
from anyvla.advice.rate import Call, choose_rate, most_hz
from anyvla.advice.rules import read_evidence, read_rules
from anyvla.advice.situation import Situation, of_dataset
from anyvla.advice.studies import Shown, read_studies
from anyvla.cli.main import main
from anyvla.config import ConfigError, override_keys, to_dict
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.files import durable
from anyvla.recipe import build_recipe, read
from anyvla.study.file import Comparison, read_study
from anyvla.study.store import append_cell
from tests import small
from tests.hub_like import SO101, curves, write_hub_like
from tests.study.small_study import make_study, sample_lines


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advised") / "data"
    write_dataset(folder, small.embodiment(), [small.episode(n, i) for i, n in enumerate((12, 9, 21))])
    return folder


@pytest.fixture(scope="module")
def situation(data: Path) -> Situation:
    return of_dataset(str(data), None, None, None)


def study_folder(root: Path, rates: dict[str, float], seeds: int = 4) -> Path:
    axes = {"history": {name: {} for name in rates}}
    study = make_study(axes, Comparison(name="x", axis="history"), seeds=range(seeds))
    root.mkdir()
    durable.write(root / "study.yaml", json.dumps(to_dict(study)))
    for line in sample_lines(study, lambda labels: rates[labels["history"]], episodes=40):
        append_cell(root / "store.jsonl", line)
    return root


def chosen(request: Request, *studies: Path) -> dict[str, Any]:
    return {d.choice: d for d in advise(request, read_studies(studies)).decisions}


def test_a_written_recipe_builds_is_planned_and_trains(data: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "mine.yaml"
    assert main(["advise", "--dataset", str(data), "--out", str(file), "--call-ms", "20"]) == 0
    assert "VLANeXt" in capsys.readouterr().out
    assert read(str(file)).model.execute == 4
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert shlex.quote(str(data)) in " ".join(head).replace("# ", "")
    assert main(["plan", str(file), "--json", "--out", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out)["fits"]
    tiny = "--training.steps 2 --training.batch_size 2 --training.track none --training.optim.warmup_steps 0"
    assert main(["train", str(file), "--out", str(tmp_path / "run"), *tiny.split()]) == 0


def test_sources_that_disagree_are_both_shown(situation: Situation) -> None:
    history = chosen(Request(situation, call_ms=20))["history"]
    assert history.value == "none"
    assert {s.id: s.stance for s in history.evidence} == {
        "robovlms-history": "against",
        "robovlms-one-step": "open",
        "vlanext-history": "for",
        "ours-history": "open",
    }


def test_a_study_that_decides_overrules_and_one_that_cannot_tell_does_not(situation: Situation, tmp_path: Path) -> None:
    clear = study_folder(tmp_path / "clear", {"none": 0.2, "policy_head": 0.9})
    history = chosen(Request(situation, call_ms=20), clear)["history"]
    assert (history.value, history.evidence[0].stance) == ("policy_head", "for")
    assert "a study finds it better than none" in history.why
    open_ = study_folder(tmp_path / "open", {"none": 0.5, "policy_head": 0.5})
    history = chosen(Request(situation, call_ms=20), open_)["history"]
    assert (history.value, history.evidence[0].stance) == ("none", "open")
    assert "cannot tell" in history.evidence[0].text


def test_studies_that_disagree_or_have_one_training_leave_the_rule(situation: Situation, tmp_path: Path) -> None:
    better = study_folder(tmp_path / "better", {"none": 0.2, "policy_head": 0.9})
    worse = study_folder(tmp_path / "worse", {"none": 0.9, "policy_head": 0.2})
    history = chosen(Request(situation, call_ms=20), better, worse)["history"]
    assert (history.value, [s.stance for s in history.evidence[:2]]) == ("none", ["against", "for"])
    single = study_folder(tmp_path / "single", {"none": 0.2, "policy_head": 0.9}, seeds=1)
    history = chosen(Request(situation, call_ms=20), single)["history"]
    assert (history.value, history.evidence[0].stance) == ("none", "against")


def test_no_study_gives_a_policy_without_history_to_a_task_that_needs_it(situation: Situation, tmp_path: Path) -> None:
    against = study_folder(tmp_path / "study", {"none": 0.9, "policy_head": 0.2})
    history = chosen(Request(situation, call_ms=20, needs_memory=True), against)["history"]
    assert (history.value, history.evidence[0].stance) == ("policy_head", "against")


def find(situation: Situation, benchmark: str, comparison: str, better: str, worse: str, **facts: bool) -> Advice:
    """Return the advice with one finding of the study `how`, which compares histories and decoders on one axis."""
    found = Shown("how", comparison, "structure", (benchmark,), better, worse, general=True, sentence="found")
    return advise(Request(situation, call_ms=20, **facts), [found])


def test_a_finding_on_a_suite_of_memory_counts_only_where_memory_is_needed(situation: Situation) -> None:
    def history(benchmark: str, **facts: bool) -> Decision:
        found = find(situation, benchmark, "history", "head-8", "none", **facts)
        return next(of for of in found.decisions if of.choice == "history")

    assert history("metaworld/mt10").value == "policy_head"
    assert history("metaworld/recall").value == "none"
    assert history("metaworld/recall").evidence[0].stance == "open"
    needed = history("metaworld/recall", needs_memory=True)
    assert (needed.value, needed.evidence[0].stance) == ("policy_head", "for")


def test_a_comparison_of_decoders_says_nothing_of_histories_on_the_same_axis(situation: Situation) -> None:
    found = {of.choice: of for of in find(situation, "metaworld/mt10", "decoder", "flow", "none").decisions}
    assert found["decoder"].value == "flow"
    assert found["history"].value == "none"
    assert "found" not in [statement.text for statement in found["history"].evidence]


def test_the_comparisons_of_studies_that_rules_name_exist() -> None:
    """And the labels of their options are among those compared."""
    studies = {path.stem: read_study(path) for path in (Path(__file__).parents[2] / "studies").glob("*.yaml")}
    for choice in read_rules().choices:
        for name in choice.comparisons:
            study, _, comparison = name.partition(".")
            [compared] = [of for of in studies[study].comparisons if of.name == comparison]
            labels = {compared.base, *compared.against}
            assert sum(any(map(option.named, labels)) for option in choice.options) >= 2


def test_demonstrations_that_disagree_get_a_decoder_that_samples(situation: Situation) -> None:
    found = advise(Request(situation, call_ms=20, disagreeing=True))
    assert found.recipe["model"]["decoder"] == "flow"


@pytest.mark.parametrize(
    ("hz", "ms", "execute", "chunk"),
    [
        (10, 10, 4, 8),  # the least
        (50, 10, 5, 10),  # a tenth of a second
        (50, 200, 15, 30),  # 1.5 calls
        (30, 20, 4, 8),
        (50, 600, 45, 50),  # the longest chunk
        (50, 667, None, None),
        (1000, 10, 50, 50),  # a tenth of a second would be longer than a chunk
    ],
)
def test_a_chunk_lasts_one_and_a_half_calls_and_a_tenth_of_a_second(
    hz: float, ms: float, execute: int | None, chunk: int | None
) -> None:
    rate = choose_rate(hz, Call(ms, ""), read_rules().rate)
    assert (rate and rate.execute, rate and rate.chunk) == (execute, chunk)
    assert (rate is None) == (hz > most_hz(Call(ms, ""), read_rules().rate))


def test_a_rate_that_no_option_reaches_is_refused_with_what_would(situation: Situation) -> None:
    with pytest.raises(ConfigError, match=r"at most 7 Hz of the 10 asked for.*--call-ms.*a lower --hz"):
        advise(Request(situation, call_ms=5000))


def test_a_lower_rate_resamples_the_data_and_a_higher_one_is_refused(data: Path, capsys: Any) -> None:
    lower = of_dataset(str(data), None, None, 5)
    assert (lower.hz, lower.actions, lower.document["data"]["sources"][0]["hz"]) == (5, 21, 5)
    with pytest.raises(ConfigError, match="recorded at 10 Hz"):
        of_dataset(str(data), None, None, 20)


def test_a_large_model_without_a_gpu_is_refused_with_what_fits(
    situation: Situation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"paligemma-3b: .* GPU only.* What fits: --backbone nano"):
        advise(Request(situation, backbone="paligemma-3b", call_ms=20))
    with pytest.raises(ConfigError, match="did you mean 'smolvlm2-500m'"):
        advise(Request(situation, backbone="smolvlm2-500"))


def test_a_small_gpu_gets_a_small_model_with_the_reasons(situation: Situation) -> None:
    found = advise(Request(situation, gpu="3GB"))
    backbone = found.decisions[0]
    assert backbone.value == "nano"
    (reason,) = {s.text for s in backbone.evidence if s.text.startswith("not paligemma-3b:")}
    assert "35.04 GB" in reason
    assert found.plan.memory.total <= found.plan.available


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--demonstrations", "-3"], "--demonstrations -3: at least 1"),
        (["--hz", "-1"], "--hz -1"),
        (["--call-ms", "0"], "--call-ms 0"),
        (["--gpu", "h10"], "did you mean 'h100'"),
        (["--study", "nowhere"], "there is no study file nowhere"),
    ],
)
def test_bad_options_get_clear_errors(data: Path, options: list[str], message: str, capsys: Any) -> None:
    assert main(["advise", "--dataset", str(data), *options]) == 1
    assert message in capsys.readouterr().err


def test_data_without_conventions_is_refused_with_the_next_command(tmp_path: Path) -> None:
    joints = [curves(6, -90, 90, steps, seed) for seed, steps in enumerate((9, 9))]
    features = {"action": (SO101, joints), "observation.state": (SO101, joints)}
    root = write_hub_like(tmp_path / "undeclared", features, size=16)
    with pytest.raises(ConfigError, match=r"(?s)anyvla data info .*--embodiment robot\.yaml"):
        of_dataset(str(root), None, None, None)


def test_an_existing_file_is_kept(data: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    assert main(["advise", "--dataset", str(data), "--out", str(file), "--call-ms", "20"]) == 1
    assert file.read_text() == "mine"


def test_every_rule_is_consistent() -> None:
    """Conditions name facts, each situation has an option, keys exist, and evidence names options."""
    rules, evidence = read_rules(), read_evidence()
    robot = small.embodiment()
    base = Situation(robot, 3, 1, 42, 10, {"data": {"sources": [{"path": "x"}]}})
    options = {choice.name: {option.name for option in choice.options} for choice in rules.choices}
    for row in evidence.values():
        assert set(row.favors) <= options.get(row.choice, set()), row.id
    for kind in ("tuned", "lora", "scratch"):
        for flags in range(8):
            needs, ways, gpu = bool(flags & 1), bool(flags & 2), bool(flags & 4)
            facts = {**base.facts(gpu=gpu, needs_memory=needs, disagreeing=ways), "kind": kind}
            for choice in rules.choices:
                assert any(option.preferred(facts) for option in choice.options), choice.name
    for backbone in rules.choice("backbone").options:
        assert backbone.call_ms is not None
        assert backbone.call_ms[1] in evidence


def test_the_keys_of_every_option_exist() -> None:
    plain = read("quickstart")
    for choice in read_rules().choices:
        for option in choice.options:
            document = override_keys(to_dict(plain), list(option.set.items()))
            build_recipe(document, option.name)
