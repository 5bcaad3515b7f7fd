from __future__ import annotations

import pickle

import numpy as np
import pytest

from anyvla.data.transforms.cameras import Cameras
from tests.data.demonstrations import Counted, InMemory, demonstration, scene


def test_cameras_are_renamed_in_the_order_given_and_others_never_decoded():
    corner, wrist = Counted(scene(6)), Counted(scene(6, seed=7))
    data = InMemory([demonstration(6, images={"corner": corner, "wrist": wrist})])
    seen = Cameras(data, {"hand": "wrist"})
    assert seen.embodiment.cameras == seen[0].embodiment.cameras == ("hand",)
    np.testing.assert_array_equal(seen[0].images["hand"][[4, 1]], scene(6, seed=7)[[4, 1]])
    assert list(seen[0].images) == ["hand"]
    assert (corner.decoded, wrist.decoded) == (0, 2)
    both = Cameras(data, {"hand": "wrist", "primary": "corner"})
    assert both.embodiment.cameras == ("hand", "primary")
    np.testing.assert_array_equal(both[0].images["hand"][:], scene(6, seed=7))
    np.testing.assert_array_equal(both[0].images["primary"][:], scene(6))
    assert both.lengths.tolist() == [6]
    assert (len(both), both.task(0)) == (1, data.task(0))


def test_the_change_is_part_of_the_fingerprint_and_survives_pickling():
    data = InMemory([demonstration(6)])
    one = Cameras(data, {"a": "wrist", "b": "corner"})
    other = Cameras(data, {"b": "corner", "a": "wrist"})
    assert len({data.fingerprint, one.fingerprint, other.fingerprint}) == 3  # the order of views counts
    assert one.provenance == {"format": "memory", "changes": [{"cameras": [["a", "wrist"], ["b", "corner"]]}]}
    again = pickle.loads(pickle.dumps(one))
    assert again.fingerprint == one.fingerprint
    np.testing.assert_array_equal(again[0].images["a"], one[0].images["a"])


def test_an_unknown_camera_is_refused():
    data = InMemory([demonstration(6)])
    with pytest.raises(ValueError, match=r"memory has no camera 'wirst' to be 'hand': did you mean 'wrist'\?"):
        Cameras(data, {"hand": "wirst"})
    with pytest.raises(ValueError, match="choose one camera of memory at least: corner, wrist"):
        Cameras(data, {})
