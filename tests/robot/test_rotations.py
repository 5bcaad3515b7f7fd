from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation as Scipy

from anyvla.robot.rotations import (
    apply,
    compose,
    convert,
    from_quaternions,
    invert,
    make_continuous,
    radians_per_unit,
    relative,
    rotate,
    to_quaternions,
)
from anyvla.robot.space import ROTATION_DIMS

CONVENTIONS = sorted(ROTATION_DIMS)
FRAMES = st.sampled_from(["base", "tool"])
angles = st.floats(-np.pi, np.pi) | st.sampled_from([0.0, 1e-9, -1e-5, np.pi / 2, -np.pi / 2, np.pi, np.pi - 1e-9])
eulers = st.tuples(angles, angles, angles).map(np.array)
conventions = st.sampled_from(CONVENTIONS)


def unit(values):
    return np.linalg.norm(values) > 1e-3


xyzw = arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(unit).map(lambda q: q / np.linalg.norm(q))


def by_scipy(rotation: Scipy, convention: str) -> np.ndarray:
    matrix = rotation.as_matrix()
    return {
        "euler": lambda: rotation.as_euler("xyz"),
        "axis_angle": rotation.as_rotvec,
        "quaternion_xyzw": rotation.as_quat,
        "quaternion_wxyz": lambda: np.roll(rotation.as_quat(), 1, -1),
        "rot6d": lambda: np.concatenate([matrix[..., :, 0], matrix[..., :, 1]], -1),
    }[convention]()


def matrix(values: np.ndarray, convention: str) -> np.ndarray:
    """Return the rotation matrix of converted values, by scipy."""
    if convention == "euler":
        return Scipy.from_euler("xyz", values).as_matrix()
    if convention == "axis_angle":
        return Scipy.from_rotvec(values).as_matrix()
    if convention == "rot6d":
        x, y = values[..., :3], values[..., 3:]
        return np.stack([x, y, np.cross(x, y)], -1)
    return Scipy.from_quat(values if convention == "quaternion_xyzw" else np.roll(values, -1, -1)).as_matrix()


@pytest.mark.filterwarnings("ignore:Gimbal lock")
@given(angles=eulers, source=conventions, target=conventions)
def test_a_conversion_gives_the_same_rotation_as_scipy(angles, source, target):
    rotation = Scipy.from_euler("xyz", angles)
    given_values = by_scipy(rotation, source)
    ours = convert(given_values, source, target)
    assert ours.shape == (ROTATION_DIMS[target],)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(matrix(ours, target), matrix(given_values, source), atol=1e-7)


@pytest.mark.parametrize("source", CONVENTIONS)
@pytest.mark.parametrize("target", CONVENTIONS)
def test_numbers_equal_scipy_away_from_singularities(source, target):
    rotation = Scipy.random(500, random_state=3)
    expected = by_scipy(rotation, target)
    if target.startswith("quaternion"):
        real = 3 if target == "quaternion_xyzw" else 0
        expected = np.where(expected[:, real : real + 1] < 0, -expected, expected)
    ours = convert(by_scipy(rotation, source).reshape(5, 100, -1), source, target)  # any leading dims
    np.testing.assert_allclose(ours.reshape(500, -1), expected, atol=1e-12)


@given(q=xyzw)
def test_both_antipodes_convert_to_the_same_numbers(q):
    for target in CONVENTIONS:
        np.testing.assert_allclose(
            convert(q, "quaternion_xyzw", target), convert(-q, "quaternion_xyzw", target), atol=1e-12
        )
    assert convert(q, "quaternion_xyzw", "quaternion_xyzw")[3] >= 0
    np.testing.assert_allclose(from_quaternions(-q, "axis_angle"), from_quaternions(q, "axis_angle"), atol=1e-12)
    assert np.linalg.norm(from_quaternions(-q, "axis_angle")) <= np.pi + 1e-12


@given(q=xyzw, factor=st.floats(0.01, 100))
def test_a_quaternion_need_not_be_of_norm_one(q, factor):
    np.testing.assert_allclose(to_quaternions(factor * q, "quaternion_xyzw"), q, atol=1e-12)


def test_rot6d_is_the_first_column_and_then_the_second():
    # A quarter turn about z takes x to y and y to -x: the matrix is [[0, -1, 0], [1, 0, 0], [0, 0, 1]]. By rows it
    # would be 0 -1 0 1 0 0, and its columns interleaved 0 -1 1 0 0 0.
    np.testing.assert_allclose(convert([0, 0, np.pi / 2], "euler", "rot6d"), [0, 1, 0, -1, 0, 0], atol=1e-15)
    np.testing.assert_allclose(convert([0, 1, 0, -1, 0, 0], "rot6d", "axis_angle"), [0, 0, np.pi / 2], atol=1e-15)


@pytest.mark.parametrize(
    ("euler", "axis_angle", "xyzw", "rot6d"),
    [
        ([0, 0, 90], [0, 0, 90], [0, 0, 0.5**0.5, 0.5**0.5], [0, 1, 0, -1, 0, 0]),
        ([90, 0, 0], [90, 0, 0], [0.5**0.5, 0, 0, 0.5**0.5], [1, 0, 0, 0, 0, 1]),
        # x goes to y, y to z, z to x: a third of a turn about (1, 1, 1)
        ([90, 0, 90], [120 / 3**0.5] * 3, [0.5] * 4, [0, 1, 0, 0, 0, 1]),
    ],
)
def test_the_examples_of_the_docs(euler, axis_angle, xyzw, rot6d):
    q = to_quaternions(np.deg2rad(euler), "euler")
    np.testing.assert_allclose(np.rad2deg(from_quaternions(q, "axis_angle")), axis_angle, atol=1e-12)
    np.testing.assert_allclose(from_quaternions(q, "quaternion_xyzw"), xyzw, atol=1e-12)
    np.testing.assert_allclose(from_quaternions(q, "quaternion_wxyz"), [xyzw[3], *xyzw[:3]], atol=1e-12)
    np.testing.assert_allclose(from_quaternions(q, "rot6d"), rot6d, atol=1e-12)


def test_euler_turns_about_fixed_axes_roll_first():
    # Roll 90 deg takes y to z; yaw 90 deg, about the fixed z, leaves it there. Yaw first would end at -x.
    turned = rotate(to_quaternions([np.pi / 2, 0, np.pi / 2], "euler"), np.array([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(turned, [0, 0, 1], atol=1e-15)


@given(angles=eulers, noise=arrays(np.float64, 6, elements=st.floats(-0.2, 0.2)), length=st.floats(0.3, 3))
def test_perturbed_columns_become_the_gram_schmidt_rotation(angles, noise, length):
    perturbed = (convert(angles, "euler", "rot6d") + noise) * length
    x = perturbed[:3] / np.linalg.norm(perturbed[:3])
    y = perturbed[3:] - (perturbed[3:] @ x) * x
    y /= np.linalg.norm(y)
    clean = convert(perturbed, "rot6d", "rot6d")
    np.testing.assert_allclose(clean, [*x, *y], atol=1e-9)
    np.testing.assert_allclose(convert(clean, "rot6d", "rot6d"), clean, atol=1e-12)


@given(roll=angles, yaw=angles, pitch=st.sampled_from([np.pi / 2, -np.pi / 2]), off=st.floats(-1e-6, 1e-6))
def test_gimbal_lock_keeps_the_rotation(roll, yaw, pitch, off):
    q = to_quaternions([roll, pitch + off, yaw], "euler")
    euler = from_quaternions(q, "euler")
    np.testing.assert_allclose(matrix(euler, "euler"), Scipy.from_quat(q).as_matrix(), atol=1e-6)
    if off == 0:
        assert euler[2] == 0


@given(axis=arrays(np.float64, 3, elements=st.floats(-1, 1)).filter(unit), gap=st.floats(-1e-6, 1e-6))
def test_angles_near_pi_and_near_zero(axis, gap):
    axis = axis / np.linalg.norm(axis)
    for angle in (np.pi + gap, gap):
        vector = convert(angle * axis, "axis_angle", "axis_angle")
        assert np.linalg.norm(vector) <= np.pi + 1e-12
        expected = Scipy.from_rotvec(angle * axis).as_matrix()
        np.testing.assert_allclose(Scipy.from_rotvec(vector).as_matrix(), expected, atol=1e-10)
    assert (convert(np.zeros(3), "axis_angle", "euler") == 0).all()
    for angle in (1e-9, 1e-13, 1e-200):
        same = convert(angle * axis, "axis_angle", "axis_angle")
        np.testing.assert_allclose(same, angle * axis, rtol=1e-9, atol=1e-9 * angle)


@given(a=xyzw, b=xyzw, v=arrays(np.float64, 3, elements=st.floats(-2, 2)))
def test_composition_inverse_and_rotation_of_vectors_equal_scipy(a, b, v):
    first, second = Scipy.from_quat(a), Scipy.from_quat(b)
    np.testing.assert_allclose(Scipy.from_quat(compose(a, b)).as_matrix(), (first * second).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(Scipy.from_quat(invert(a)).as_matrix(), first.inv().as_matrix(), atol=1e-12)
    np.testing.assert_allclose(rotate(a, v), first.apply(v), atol=1e-12)


@given(a=xyzw, b=xyzw, frame=FRAMES)
def test_a_delta_leads_from_one_to_the_other(a, b, frame):
    delta = relative(a, b, frame)
    reached = apply(delta, a, frame)
    np.testing.assert_allclose(matrix(reached, "quaternion_xyzw"), matrix(b, "quaternion_xyzw"), atol=1e-12)
    by_hand = matrix(b, "quaternion_xyzw") @ matrix(a, "quaternion_xyzw").T
    if frame == "tool":
        by_hand = matrix(a, "quaternion_xyzw").T @ matrix(b, "quaternion_xyzw")
    np.testing.assert_allclose(matrix(delta, "quaternion_xyzw"), by_hand, atol=1e-12)


@given(start=eulers, signs=arrays(np.int64, 12, elements=st.sampled_from([-1, 1])))
def test_a_trajectory_has_no_antipode_jumps(start, signs):
    step = to_quaternions([0.1, 0.4, -0.3], "euler")
    path = [to_quaternions(start, "euler")]
    for _ in range(11):
        path.append(apply(step, path[-1], "base"))
    jumping = np.array(path) * signs[:, None]
    smooth = make_continuous(jumping)
    assert np.linalg.norm(np.diff(smooth, axis=0), axis=1).max() < 0.3
    assert smooth[0, 3] >= 0
    np.testing.assert_array_equal(np.abs(smooth), np.abs(jumping))  # only signs differ
    np.testing.assert_array_equal(make_continuous(np.stack([jumping, -jumping]))[1], smooth)
    assert make_continuous(jumping[:0]).shape == (0, 4)


def test_a_row_that_is_not_finite_does_not_affect_other_rows():
    values = np.array([[0.1, 0.2, 0.3], [np.nan, 0, 0], [0.3, 0.2, 0.1]])
    for target in CONVENTIONS:
        out = convert(values, "euler", target)
        assert np.isfinite(out).all(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("values", "source", "message"),
    [
        ([[1.0, 0, 0, 0], [0, 0, 0, 0]], "quaternion_xyzw", r"row 1: \[0.0, 0.0, 0.0, 0.0\] is no rotation: a quat"),
        ([[1.0, 0, 0, 2, 0, 0]], "rot6d", "row 0: .* is no rotation: its two columns are parallel"),
        ([[0.0, 0, 0, 0, 1, 0]], "rot6d", "row 0: .* is no rotation: neither column may be zero"),
        ([[1.0, 0, 0]], "rot6d", r"a rotation as rot6d has 6 numbers, got an array \(1, 3\)"),
        pytest.param(
            [[1.0, 0, 0]],
            "eulr",
            "no rotation is written as 'eulr': did you mean 'euler'",
            marks=pytest.mark.wrong_types,
        ),
    ],
)
def test_values_that_are_no_rotation_are_refused(values, source, message):
    with pytest.raises(ValueError, match=message):
        convert(np.array(values), source, "euler")


def test_units_of_angles():
    assert radians_per_unit("") == radians_per_unit("rad") == 1
    assert radians_per_unit("0.05 rad") == 0.05
    assert radians_per_unit("deg") == pytest.approx(np.pi / 180)
    with pytest.raises(ValueError, match=r"the unit 'rad/s' is no angle: expected 'rad', 'deg' or a part"):
        radians_per_unit("rad/s")
