"""The table of combinations in docs/sharding.md is what happens."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.training.combining import OPTIONS, train_all
from tests.training.launched import Launcher

DOCS = Path(__file__).parents[2] / "docs" / "sharding.md"
NOT_SHARDED = {"quantized": "quantize packs them in blocks", "8-bit AdamW": "adamw8bit rounds it in blocks"}
ONE_KEY = ({"Muon", "8-bit AdamW"}, {"float16", "bfloat16"})
TOLERANCE = {"float16": 0.1, "bfloat16": 1e-3, "Muon": 1e-5}  # Muon rounds to bfloat16


def outcome(names: set[str]) -> str:
    """Return the cell of a combination."""
    if names in ONE_KEY:
        return "-"
    return "DDP" if names & NOT_SHARDED.keys() else "all"


def render() -> str:
    """Return the table in Markdown: each option alone, and each pair once."""
    names = list(OPTIONS)
    rows = [["", "alone", *names[:-1]], ["---"] * (len(names) + 1)]
    for number, name in enumerate(names):
        pairs = [outcome({name, other}) for other in names[:number]]
        rows.append([name, outcome({name}), *pairs, *[""] * (len(names) - 1 - number)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def test_the_table_of_the_docs_is_up_to_date() -> None:
    found = re.search(r"<!-- table -->\n(.*?)\n*<!-- end -->", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert found[1] == render()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_combinations_give_the_same_losses_or_are_refused(
    name: str, launch: Launcher, two_sources: Path, tmp_path: Path
) -> None:
    """Each option alone and with those before it in the table."""
    before = itertools.takewhile(lambda other: other != name, OPTIONS)
    sets = [{name}, *({name, other} for other in before if outcome({name, other}) != "-")]
    combinations = {" + ".join(sorted(names)): names for names in sets}
    found = {}
    for mode, count, shard in (("one", 1, "false"), ("DDP", 2, "false"), ("FSDP2", 2, "true")):
        given = (tmp_path / mode, two_sources / "one", shard, *combinations)
        if count == 1:
            ended = launch.start(train_all, *given, own=[{}]).wait(timeout_s=900)
        else:
            ended = launch(train_all, count, *given, timeout_s=900)
        assert [of.status for of in ended] == [0] * count, "\n".join(of.err for of in ended)
        found[mode] = {line["of"]: line for line in ended[0].said}
    for combination, names in combinations.items():
        losses = found["one"][combination]["losses"]
        tolerance = max(TOLERANCE.get(option, 1e-6) for option in names)
        assert found["DDP"][combination]["losses"] == pytest.approx(losses, rel=tolerance)
        if refused := names & NOT_SHARDED.keys():
            message = found["FSDP2"][combination]["refused"]
            assert any(NOT_SHARDED[option] in message for option in refused)
        else:
            assert found["FSDP2"][combination]["losses"] == pytest.approx(losses, rel=tolerance)
