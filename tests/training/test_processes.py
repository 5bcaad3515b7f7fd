from __future__ import annotations

import json
import os
import signal
import socket
import time

import pytest

from anyvla.config import ConfigError
from anyvla.interrupted import Interrupted
from anyvla.training.launchers import Launch, read_launch
from anyvla.training.processes import EndedElsewhere, LostProcess, Processes
from tests.training.launched import Launcher


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def test_a_single_process_speaks_to_itself() -> None:
    with Processes.joined(None) as processes:
        assert (processes.rank, processes.count, processes.is_main, processes.local_count) == (0, 1, True, 1)
        assert processes.sum(2, 0.5) == [2.0, 0.5]
        assert processes.gather({"a": [1]}) == [{"a": [1]}]
        assert processes.on_main(lambda: "done") == "done"
        assert processes.any(True)
        assert not processes.any(False)
        assert processes.split(12) == range(12)


@pytest.mark.parametrize(("rank", "count", "rows"), [(0, 2, (0, 6)), (1, 2, (6, 12)), (2, 4, (6, 9)), (3, 4, (9, 12))])
def test_processes_share_the_rows_of_a_batch_in_order(rank: int, count: int, rows: tuple[int, int]) -> None:
    processes = Processes(Launch("torchrun", rank, count, rank, "", 0), None)
    assert processes.split(12) == range(*rows)


def talk() -> None:
    """Exchange messages of several kinds."""
    with Processes.joined(read_launch()) as processes:
        me = processes.rank
        say(rank=me, local=processes.local_count, main=processes.is_main)
        say(sums=[processes.sum(1, 10**me, 0.1 * me) for _ in range(2)][1])
        say(gathered=processes.gather({"rank": me, "text": "ü" * 300 * me} if me != 1 else None))
        say(of_main=processes.on_main(lambda: ["from", me]))
        say(any=[processes.any(me == 2), processes.any(False)])
        begin = time.perf_counter()
        used = time.process_time()
        if me == 0:
            time.sleep(1.0)  # as if it measured
        processes.wait_for_all()
        say(waited=time.perf_counter() - begin, used=time.process_time() - used)


def test_messages_reach_all_processes_in_order_of_rank(launch: Launcher) -> None:
    for rank, ended in enumerate(launch(talk, 3)):
        facts = {key: value for line in ended.said for key, value in line.items()}
        assert (facts["rank"], facts["local"], facts["main"]) == (rank, 3, rank == 0)
        assert facts["sums"] == [3, 111, 0 + 0.1 + 0.2]
        assert facts["gathered"] == [{"rank": 0, "text": ""}, None, {"rank": 2, "text": "ü" * 600}]
        assert facts["of_main"] == ["from", 0]
        assert facts["any"] == [True, False]
        assert 0.9 < facts["waited"] < 5
        assert facts["used"] < 0.3  # the others sleep


def fail(how: str) -> None:
    """Let process 1 fail while process 0 works and then writes."""
    begin = time.monotonic()
    try:
        with Processes.joined(read_launch()) as processes:
            processes.wait_for_all()
            try:
                if processes.rank == 1:
                    begin = time.monotonic()
                    {"config": _raise_config, "bug": lambda: {}["key"], "kill": _kill, "stop": _raise_stop}[how]()
                if processes.is_main:
                    time.sleep(0.5)
                processes.wait_for_all()
                say(survived=True)
            except (EndedElsewhere, Interrupted):
                if processes.is_main:
                    time.sleep(0.5)
                    say(saved=True)
                raise
    except Exception as error:
        say(kind=type(error).__name__, text=str(error), s=time.monotonic() - begin)


def _raise_config() -> None:
    raise ConfigError("a folder is missing")


def _raise_stop() -> None:
    raise Interrupted("stopped after 3 steps")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("how", "of_main", "of_failed"),
    [
        ("config", ("EndedElsewhere", "process 1 of 2 (host {}): a folder is missing"), "EndedElsewhere"),
        ("bug", ("EndedElsewhere", "process 1 of 2 (host {}): KeyError: 'key'"), "KeyError"),
        ("stop", ("Interrupted", "stopped after 3 steps"), "Interrupted"),
    ],
)
def test_an_error_of_one_process_ends_all_once_process_0_has_written(
    launch: Launcher, how: str, of_main: tuple[str, str], of_failed: str
) -> None:
    main, failed = (of.said for of in launch(fail, 2, how))
    assert main[0] == {"saved": True}
    assert (main[1]["kind"], main[1]["text"]) == (of_main[0], of_main[1].format(socket.gethostname()))
    assert failed[0]["kind"] == of_failed
    assert 1.0 <= failed[0]["s"] < 5  # it waited for process 0 to write


def test_the_death_of_a_process_ends_the_others_within_seconds(launch: Launcher) -> None:
    main, killed = launch(fail, 2, "kill")
    assert killed.status == -signal.SIGKILL
    [said] = main.said
    assert said["kind"] == LostProcess.__name__
    assert said["s"] < 10
