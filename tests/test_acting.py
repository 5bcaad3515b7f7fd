"""A policy acts only on valid observations, on its own sessions, and if its chunks are finite."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

from anyvla.observing import ProprioChecker
from anyvla.policy import VLA
from anyvla.robot.shared_layout import Robot
from anyvla.robot.space import ActionSpace, Group
from anyvla.types import ChunkError, Observation
from tests.small import HISTORIES, NANO, batch, embodiment, fit_codec, model, observation, policy, statistics

DATA = batch(2, 8)
STRUCTURES = [
    ("none", "identity"),
    (HISTORIES[1], {"name": "lstm", "hidden": 32, "layers": 1}),
    (HISTORIES[2], "identity"),
    ({"name": "interleaved", "window": 3, "cache": False}, "identity"),
]
structures = pytest.mark.parametrize(("history", "fuser"), STRUCTURES, ids=["none", "head", "cached", "read again"])


def observe(row=0, step=0, **keys):
    return dataclasses.replace(observation(DATA, row, step), **keys)


def observe_proprio(dim, value):
    vector = observe().proprio.copy()
    vector[dim] = value
    return observe(proprio=vector)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_proprio_that_is_not_finite_is_refused_by_name(value):
    vla = policy()
    vector = observe().proprio.astype(np.float64)
    vector[1] = value
    with pytest.raises(
        ValueError, match=r"observation 1: proprio of robot 'small' is not finite: group 'position', dim 1"
    ):
        vla.act([observe(), observe(proprio=vector)], [vla.start("open"), vla.start("open")])


@pytest.mark.parametrize("value", [57.3, -300.0, 1e6, 1e30])
def test_proprio_far_from_the_training_data_is_refused_unless_the_setting_says_warn(value, caplog):
    vla = policy()
    far = r"proprio of robot 'small' is far outside of the training data: group 'position', dim 2 is .*recorded -2 to 2"
    with pytest.raises(ValueError, match=f"observation 0: {far}.*implausible: warn"):
        vla.act([observe_proprio(2, value)], [vla.start("open")])
    for warns in (policy(implausible="warn"), vla):
        warns.implausible = "warn"
        caplog.clear()
        session, other = warns.start("open"), warns.start("open")
        with caplog.at_level(logging.WARNING, "anyvla.observing"):
            for _ in range(3):
                warns.act([observe_proprio(2, value)], [session])
            assert len(caplog.records) == 1
            warns.act([observe_proprio(1, value)], [session])  # another dim
            warns.act([observe_proprio(2, value)], [other])  # another session
        assert len(caplog.records) == 3


def test_a_policy_without_proprio_accepts_any_units():
    vla = policy(proprio="none")
    vla.act([observe_proprio(2, 1e6)], [vla.start("open")])
    with pytest.raises(ValueError, match="is not finite"):
        vla.act([observe_proprio(2, np.nan)], [vla.start("open")])


def is_implausible(group, recorded, value):
    """Return whether a vector of a group with these recorded ranges is implausible."""
    low, high = zip(*recorded, strict=True)
    space = ActionSpace(groups=(group,))
    known = {"min": low, "max": high}
    robot = Robot(dataclasses.replace(embodiment(), proprio=space), dataclasses.replace(statistics(), proprio=known))
    return ProprioChecker(robot).find_implausible(np.array(value, np.float32)).any()


ARM = Group(name="joints", size=3, kind="joints", unit="rad")
TOOL = Group(name="position", size=3, kind="position", unit="m")
HAND = Group(name="gripper", size=1, kind="gripper", low=0, high=1)


@pytest.mark.parametrize(
    ("group", "recorded", "value", "expected"),
    [
        (ARM, [(-1.5, 1.5)] * 3, [1.6, -1.9, 3.1], False),  # a little beyond
        (ARM, [(-1.5, 1.5)] * 3, [0.1, 30.0, 2.0], True),  # degrees
        (ARM, [(1.4, 1.6), (0, 0.2), (-1.5, 1.5)], [86.0, 5.0, 0.0], True),
        (ARM, [(1.57, 1.57)] * 3, [1.58, 1.5, 1.571], False),  # constant, with noise
        (ARM, [(0, 0), (0, 0), (-1.5, 1.5)], [1e-3, -1e-2, 0.0], False),
        (ARM, [(0, 0)] * 3, [1e-6, 1e-3, 0.1], False),  # constant at zero, all of it
        (TOOL, [(0.2, 0.6), (-0.3, 0.3), (0.1, 0.1001)], [0.7, 0.0, 0.15], False),  # hardly moved in z
        (TOOL, [(0.2, 0.6), (-0.3, 0.3), (0.1, 0.4)], [400.0, 50.0, 200.0], True),  # millimeters
        (HAND, [(0.0, 0.0)], [1.0], False),  # never opened in the data, but declared
        (HAND, [(0.0, 1.0)], [255.0], True),
    ],
)
def test_implausible_proprio_is_found(group, recorded, value, expected):
    assert is_implausible(group, recorded, value) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"proprio": [0.0, 0.0, 0.0]}, r"observation 0: proprio must be an array of float32, got list"),
        ({"proprio": torch.zeros(3)}, r"proprio must be an array of float32, got Tensor: give np\.asarray"),
        ({"proprio": np.array(["a", "b", "c"])}, r"got an array of <U1"),
        ({"proprio": np.array([None] * 3)}, r"got an array of object"),
        ({"proprio": np.ones(3, bool)}, r"got an array of bool"),
        ({"proprio": np.ones(3, complex)}, r"got an array of complex128"),
        ({"proprio": np.ones((1, 3), np.float32)}, r"proprio has shape \(1, 3\)"),
        ({"proprio": np.float32(0)}, r"got float32"),
        ({"images": [1]}, r"observation 0: give Observation\(.*got list"),
        ({"images": {"corner": None, "wrist": None}}, r"camera 'corner': .*got NoneType"),
        ({"images": {c: np.zeros((0, 32, 3), np.uint8) for c in ("corner", "wrist")}}, r"'corner': .*got an empty one"),
        ({"images": {c: np.zeros((32, 0, 3), np.uint8) for c in ("corner", "wrist")}}, r"'corner': .*got an empty one"),
        ({"images": {c: np.zeros((3, 32, 32), np.uint8) for c in ("corner", "wrist")}}, r"'corner': .*channels first"),
    ],
)
def test_observations_of_a_wrong_form_are_refused(given, message):
    vla = policy()
    with pytest.raises(ValueError, match=message):
        vla.act([observe(**given)], [vla.start("open")])


@pytest.mark.wrong_types
def test_calls_of_a_wrong_form_are_refused():
    vla = policy()
    session = vla.start("open")
    with pytest.raises(ValueError, match="observations must be a list, one for each session, got Observation"):
        vla.act(observe(), session)
    with pytest.raises(ValueError, match="sessions must be a list, one for each session, got Session"):
        vla.act([observe()], session)
    with pytest.raises(ValueError, match=r"observation 0: give Observation\(.*got dict"):
        vla.act([{"images": {}, "proprio": None}], [session])
    with pytest.raises(ValueError, match=r"session 0: give a session that start\(\) returned, got str"):
        vla.act([observe()], ["open"])


def collect_state(vla, session):
    """Return all state that a later chunk depends on, as numbers."""
    memory = [
        [
            r.row,
            *r.readouts,
            r.cache.valid,
            *[x for layer in r.cache.model_cache.layers for x in (layer.keys, layer.values)],
        ]
        if hasattr(r, "cache")
        else [r.image, r.embeddings]
        if hasattr(r, "image")
        else [r]
        for r in session.history_state
    ]
    kept = [x for item in memory for x in item] + [*session.proprio, session.generator.get_state()]
    return [torch.as_tensor(x).clone() for x in kept]


def are_equal(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@structures
def test_a_refused_call_changes_no_session(history, fuser, monkeypatch):
    vla = policy(history, fuser, decoder="flow")
    for before in (0, 1, 4):
        sessions = [vla.start("open"), vla.start("close", 1)]
        undisturbed = [vla.start("open"), vla.start("close", 1)]
        for step in range(before):
            both = [observe(row, step) for row in range(2)]
            vla.act(both, sessions)
            vla.act(both, undisturbed)
        was = [collect_state(vla, s) for s in sessions]
        both = [observe(row, before) for row in range(2)]
        refusals = [
            [both[0], observe_proprio(0, np.nan)],
            [both[0], observe_proprio(0, 1e6)],
            [both[0], observe(1, before, images={"corner": both[0].images["corner"]})],
        ]
        for given in refusals:
            with pytest.raises(ValueError, match="observation 1: "):
                vla.act(given, sessions)
            assert all(are_equal(a, collect_state(vla, s)) for a, s in zip(was, sessions, strict=True))
        sample = vla.decoder.sample
        for spoil in (torch.nan, torch.inf):
            with monkeypatch.context() as patch:
                bad = torch.zeros(2, 4, 4)
                bad[1, 3, 2] = spoil  # one number of the chunk
                patch.setattr(vla.decoder, "sample", lambda *a, b=bad, s=sample: s(*a) + b)
                with pytest.raises(ChunkError, match=r"a chunk that is not finite \(session \[1\] of this call\)"):
                    vla.act(both, sessions)
            assert all(are_equal(a, collect_state(vla, s)) for a, s in zip(was, sessions, strict=True))
        with monkeypatch.context() as patch:  # any other late error
            patch.setattr(vla.action_normalizer, "denormalize", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                vla.act(both, sessions)
        again, expected = vla.act(both, sessions), vla.act(both, undisturbed)
        for a, b in zip(again, expected, strict=True):
            np.testing.assert_array_equal(a.actions, b.actions)


@structures
def test_images_that_change_their_size_are_scaled_or_refused(history, fuser):
    """The backbone scales them; a session that keeps the images refuses them."""
    vla = policy(history, fuser)
    session = vla.start("open")
    vla.act([observe()], [session])
    large = observe(images={c: np.zeros((48, 64, 3), np.uint8) for c in ("corner", "wrist")})
    if isinstance(history, dict) and history.get("cache") is False:
        with pytest.raises(ValueError, match="the images of a session must keep their size, 32x32 became 48x64"):
            vla.act([large], [session])
    else:
        vla.act([large], [session])
    vla.act([observe()], [session])


def test_a_chunk_that_overflows_in_robot_units_is_refused():
    vla = policy()
    vla.action_normalizer.scale.fill_(3e38)
    vla.action_normalizer.offset.fill_(3e38)
    vla.action_normalizer.limit.fill_(torch.inf)
    sample = vla.decoder.sample
    vla.decoder.sample = lambda *a: sample(*a).abs() + 1  # finite itself
    with pytest.raises(ChunkError, match="not finite"):
        vla.act([observe()], [vla.start("open")])


@pytest.mark.parametrize("decoder", ["tokens", "lm_tokens"])
def test_tokens_are_not_chosen_from_scores_that_are_not_finite(decoder, tmp_path):
    vla = policy(decoder=decoder, representation="bins", codec=fit_codec("bins", tmp_path))
    vla.act([observe()], [vla.start("open")])
    with torch.no_grad():
        next(vla.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(ChunkError, match="not finite"):
        vla.act([observe()], [vla.start("open")])


def test_weights_that_are_not_finite_are_refused_when_acting():
    vla = policy(decoder="tokens", representation="bins")
    with torch.no_grad():
        vla.queries.fill_(torch.nan)
    with pytest.raises(ChunkError, match="not finite"):
        vla.act([observe()], [vla.start("open")])


@structures
def test_duplicate_sessions_and_sessions_of_another_policy_are_refused(history, fuser, tmp_path):
    vla = policy(history, fuser)
    one, two = vla.start("open"), vla.start("close")
    with pytest.raises(ValueError, match="sessions 0 and 2 of the call are the same session"):
        vla.act([observe(), observe(1), observe()], [one, two, one])
    vla.save(tmp_path / "c")
    for other in (policy(history, fuser), VLA.load(tmp_path / "c")):
        foreign = other.start("open")
        with pytest.raises(ValueError, match="session 1 was started by another policy"):
            vla.act([observe(), observe(1)], [two, foreign])
        del other
        with pytest.raises(ValueError, match="session 0 was started by another policy"):
            vla.act([observe()], [foreign])
    assert not one.proprio
    vla.act([observe(), observe(1)], [one, two])


def test_a_robot_without_proprio_acts():
    robot = dataclasses.replace(embodiment(), proprio=ActionSpace(groups=()))
    of = dataclasses.replace(statistics(), proprio={key: [] for key in statistics().proprio})
    vla = VLA(model(), [Robot(robot, of)]).eval()
    [chunk] = vla.act([observe(proprio=np.zeros(0, np.float32))], [vla.start("open")])
    assert np.isfinite(chunk.actions).all()
    with pytest.raises(ValueError, match=r"proprio has shape \(3,\), this policy was trained with \(0,\)"):
        vla.act([observe()], [vla.start("open")])


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        pytest.param(None, "an instruction must be a str, got NoneType", marks=pytest.mark.wrong_types),
        pytest.param(b"open", "an instruction must be a str, got bytes", marks=pytest.mark.wrong_types),
        pytest.param(["open"], "an instruction must be a str, got list", marks=pytest.mark.wrong_types),
        ("", "the instruction is empty"),
        (" \n\u00a0\u200b\ufeff", "the instruction is empty"),
        ("open\udce9", "half of a surrogate pair"),
        ("open\x00", "a control character"),
        ("\x1b[31mopen", "a control character"),
        ("open\x7f", "a control character"),
        ("open\ue000", "a character of private use"),  # [CLS] to CANINE
        ("open " * 100_000, "has 500000 characters, at most 10000 are read"),
    ],
)
def test_start_refuses_an_invalid_instruction(instruction, message):
    with pytest.raises(ValueError, match=message):
        policy().start(instruction)


@pytest.mark.parametrize(
    "seed", [-1, 2**63, True, *(pytest.param(wrong, marks=pytest.mark.wrong_types) for wrong in (1.5, "1", None))]
)
def test_start_refuses_an_invalid_seed(seed):
    with pytest.raises(ValueError, match=r"seed must be an integer from 0 to 2\*\*63 - 1"):
        policy().start("open", seed)


@pytest.mark.parametrize(
    ("history", "decoder"),
    [("none", "regression"), ("none", "lm_tokens"), (HISTORIES[2], "regression"), (HISTORIES[2], "lm_tokens")],
)
def test_start_refuses_exactly_the_instructions_that_are_too_long_for_act(history, decoder, tmp_path):
    """An accepted instruction acts for longer than a window."""
    codec = {} if decoder == "regression" else {"representation": "bins", "codec": fit_codec("bins", tmp_path)}
    vla = policy(history, decoder=decoder, backbone=NANO | {"context": 120}, **codec)
    taken = refused = 0
    for words in range(1, 140, 3):
        text = "x " * words
        try:
            session = vla.start(text)
        except ValueError as error:
            assert "context" in str(error)  # noqa: PT017
            refused += 1
            continue
        taken += 1
        assert not refused
        for step in range(4):
            vla.act([observe(0, step)], [session])
    assert taken
    assert refused


def test_observations_of_the_simulators_are_accepted():
    vla = policy()
    strided = np.zeros((64, 64, 3), np.uint8)[::2, ::-2]
    whole = Observation({"corner": strided, "wrist": strided}, np.zeros(6)[::2].astype(np.int32))
    [chunk] = vla.act([whole], [vla.start("open")])
    assert np.isfinite(chunk.actions).all()
