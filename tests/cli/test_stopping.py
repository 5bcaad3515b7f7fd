"""Signals to every process of a command, as terminals, schedulers, `timeout` and containers send them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from anyvla.cli.stopping import graceful
from anyvla.interrupted import Interrupted
from tests.running import children, gone, start, until
from tests.small import DECODERS, REPRESENTATIONS

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
SLOW = pytest.mark.slow
SIGNALS = pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])


def stopped(process: subprocess.Popen[str], sent: int, times: int = 1) -> str:
    """Signal the whole group, and check that the command and its workers end. Return its output."""
    workers = children(process)
    for _ in range(times):
        os.killpg(process.pid, sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    until(lambda: gone(workers), seconds=10)
    return err


@pytest.mark.parametrize(
    ("sent", "times"),  # `timeout` signals its command, and then the group
    [(signal.SIGTERM, 1), pytest.param(signal.SIGTERM, 2, marks=SLOW), pytest.param(signal.SIGINT, 2, marks=SLOW)],
)
def test_training_with_workers_writes_its_checkpoint(toy_run: Path, tmp_path: Path, sent: int, times: int) -> None:
    out = tmp_path / "run"
    data = ["--data.sources", f"[{{path: {toy_run / 'dataset'}}}]", "--data.workers", "2", "--training.steps", "100000"]
    process = start(tmp_path, "train", toy_run.parent / "toy.yaml", "--out", out, *data)
    log = out / "train" / "log.jsonl"
    until(lambda: log.is_file() and log.read_text(), process)
    err = stopped(process, sent, times)
    assert "run the same command to resume" in err
    assert len(list((out / "train").glob("step-*/model.safetensors"))) == 1


@SLOW
def test_training_writes_its_checkpoint_after_the_reader_of_its_output_ended(toy_run: Path, tmp_path: Path) -> None:
    """As in `anyvla train ... 2>&1 | tee log`: Ctrl-C ends tee too."""
    out = tmp_path / "run"
    data = ["--data.sources", f"[{{path: {toy_run / 'dataset'}}}]", "--training.steps", "100000"]
    process = start(tmp_path, "train", toy_run.parent / "toy.yaml", "--out", out, *data)
    log = out / "train" / "log.jsonl"
    until(lambda: log.is_file() and log.read_text(), process)
    assert process.stderr is not None
    process.stderr.close()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert len(list((out / "train").glob("step-*/model.safetensors"))) == 1


@SIGNALS
@SLOW
def test_a_collection_keeps_what_it_has_and_resumes(toy_run: Path, tmp_path: Path, sent: int) -> None:
    recipe = [toy_run.parent / "toy.yaml", "--out", tmp_path / "run", "--collect.demonstrations", "40"]
    process = start(tmp_path, "data", "collect", *recipe)
    partial = tmp_path / "run" / "dataset.partial"
    until(lambda: list(partial.glob("episode-*")), process)
    assert "run the same command to resume" in stopped(process, sent)
    assert list(partial.glob("episode-*"))


@SIGNALS
@SLOW
def test_a_conversion_keeps_what_it_has_and_resumes(toy_run: Path, tmp_path: Path, sent: int) -> None:
    process = start(tmp_path, "data", "convert", toy_run / "dataset", tmp_path / "out", "--processes", "1")
    partial = tmp_path / "out.partial"
    until(lambda: list(partial.glob("episode-*")), process)
    assert "run the same command to resume" in stopped(process, sent)


@SIGNALS
@SLOW
def test_an_evaluation_keeps_its_results_and_resumes(toy_run: Path, tmp_path: Path, sent: int) -> None:
    process = start(tmp_path, "eval", toy_run, "--out", tmp_path / "eval", "--episodes", "2000")
    results = tmp_path / "eval" / "results.jsonl"
    until(lambda: results.is_file() and results.read_text(), process)
    assert "run the same command to resume" in stopped(process, sent)
    assert all(line.endswith("}") for line in results.read_text().splitlines())


@SIGNALS
@SLOW
def test_a_codec_fit_leaves_no_half_codec(toy_run: Path, tmp_path: Path, sent: int) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    document = yaml.safe_load((toy_run.parent / "toy.yaml").read_text())
    document["data"] = {"sources": [{"path": str(toy_run / "dataset")}]}
    long = REPRESENTATIONS["vq"] | {"steps": 100000}  # type: ignore[operator]
    document["model"] |= {"decoder": DECODERS["tokens"], "representation": long}
    (tmp_path / "vq.yaml").write_text(yaml.safe_dump(document))
    process = start(tmp_path, "data", "fit-codec", tmp_path / "vq.yaml", "--out", tmp_path / "run")
    assert process.stderr is not None
    while "fitting vq" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(1)
    assert stopped(process, sent) == "data: stopped\n"
    assert not list((tmp_path / "run").glob("codec*"))


@SIGNALS
@pytest.mark.parametrize("after_s", [0.0, 0.5, 1.5, 3.0, 5.0])
@SLOW
def test_a_signal_while_libraries_are_imported_gives_one_line(
    toy_run: Path, tmp_path: Path, sent: int, after_s: float
) -> None:
    data = ["--data.sources", f"[{{path: {toy_run / 'dataset'}}}]", "--training.steps", "100000"]
    process = start(tmp_path, "train", toy_run.parent / "toy.yaml", "--out", tmp_path / "run", *data)

    def handles() -> bool:
        caught = Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return bool(int(caught, 16) & 1 << (signal.SIGTERM - 1))

    until(handles, process)
    time.sleep(after_s)
    err = stopped(process, sent)
    assert [line for line in err.splitlines() if line.startswith("train: stopped")] == [err.splitlines()[-1]]


def test_only_a_second_ctrl_c_of_a_person_interrupts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyvla.cli.stopping._AT_ONCE_AFTER_S", 0.05)
    never_asked = pytest.raises(Interrupted, match="just finished")
    with never_asked, graceful():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # from a program that forwards the signal
        time.sleep(0.1)
        signal.raise_signal(signal.SIGTERM)  # a scheduler ends a command at once with SIGKILL
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_work_inside_other_work_is_asked_to_stop_with_it() -> None:
    asked = []
    stopped = pytest.raises(Interrupted)
    with stopped, graceful() as outer:
        with graceful() as inner:
            signal.raise_signal(signal.SIGTERM)
            asked.append(inner())
        asked.append(outer())
    assert asked == [True, True]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
