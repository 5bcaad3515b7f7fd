from __future__ import annotations

import pytest

from anyvla.serving.protocols.registry import OTHER_NAMES, find_protocol, load_protocol, protocols


def test_other_names_are_of_registered_protocols() -> None:
    assert find_protocol("vlaeval") == find_protocol("vla-eval") == "vla-eval"
    assert set(OTHER_NAMES.values()) <= set(protocols)


def test_an_unknown_protocol_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"protocols has no 'vla_eval': did you mean .*vla-eval"):
        find_protocol("vla_eval")


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(protocols._targets, "needy", "no_such_package.adapter:Protocol")
    with pytest.raises(ImportError, match=r'^--protocol needy needs no_such_package: pip install "anyvla\[serve\]"$'):
        load_protocol("needy")


def test_a_fault_of_ours_is_not_taken_for_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(protocols._targets, "ours", "anyvla.serving.no_such_module:Protocol")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load_protocol("ours")
