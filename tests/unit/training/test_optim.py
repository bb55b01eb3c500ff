"""Optimisers, schedule and EMA against float64 definitions."""

import io
import math
import re

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_trm.training.optim import EMA, AdamATan2, scheduled_lr, sign_sgd_rows


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def np_adam_atan2(parameter, gradients, lrs, betas, decay):
    """The update rule in float64."""
    p = parameter.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (g, lr) in enumerate(zip(gradients, lrs), start=1):
        g = g.astype(np.float64)
        p = p * (1 - lr * decay)
        m = m + (1 - betas[0]) * (g - m)
        v = v + (1 - betas[1]) * (g * g - v)
        p = p - lr / (1 - betas[0] ** t) * np.arctan2(m, np.sqrt(v) / math.sqrt(1 - betas[1] ** t))
    return p


def test_adam_atan2_follows_its_definition_over_steps_with_a_changing_rate():
    start = {"a": normal(3, 4), "layers": [{"b": normal(5, seed=1)}]}
    optimizer = AdamATan2(0.0, (0.9, 0.95), weight_decay=0.3)
    parameters = {"a": mx.array(start["a"]), "layers": [{"b": mx.array(start["layers"][0]["b"])}]}
    lrs = [0.01, 0.02, 0.005, 0.01]
    gradients = [normal(3, 4, seed=10 + t) for t in range(4)]
    others = [normal(5, seed=20 + t) for t in range(4)]
    for lr, a, b in zip(lrs, gradients, others):
        optimizer.learning_rate = lr
        tree = {"a": mx.array(a), "layers": [{"b": mx.array(b)}]}
        parameters = optimizer.apply_gradients(tree, parameters)
    expected = np_adam_atan2(start["a"], gradients, lrs, (0.9, 0.95), 0.3)
    np.testing.assert_allclose(np.array(parameters["a"]), expected, atol=3e-7)
    expected = np_adam_atan2(start["layers"][0]["b"], others, lrs, (0.9, 0.95), 0.3)
    np.testing.assert_allclose(np.array(parameters["layers"][0]["b"]), expected, atol=3e-7)


def test_adam_atan2_does_not_move_without_a_gradient_and_ignores_its_scale():
    optimizer = AdamATan2(0.1)
    still = optimizer.apply_gradients({"a": mx.zeros((3,))}, {"a": mx.array([1.0, 2.0, 3.0])})
    assert np.array_equal(np.array(still["a"]), [1, 2, 3])
    moves = []
    for scale in (1.0, 1e-12):
        gradient = {"a": mx.array(normal(6) * scale)}
        moves.append(np.array(AdamATan2(0.1).apply_gradients(gradient, {"a": mx.zeros((6,))})["a"]))
    np.testing.assert_allclose(moves[0], moves[1], rtol=1e-5)
    # m = (1 - b1) g and sqrt(v / (1 - b2)) = |g|, so each entry moves by lr / (1 - b1) * atan(0.1).
    np.testing.assert_allclose(np.abs(moves[0]), math.atan(0.1), rtol=1e-5)


def test_adam_atan2_asks_for_no_angle_of_nothing(monkeypatch):
    """Metal leaves arctan2(0, 0) undefined: a weight without a gradient would become NaN."""
    arctan2, start, gradients = mx.arctan2, mx.array(normal(4)), [0.0, 1e-30, -2.0, 0.0]

    def moved():
        optimizer, weights = AdamATan2(0.1), {"a": start}
        for sign in (1.0, -1.0, 0.5):
            weights = optimizer.apply_gradients({"a": mx.array(gradients) * sign}, weights)
        return np.array(weights["a"])

    def undefined_at_zero(y, x):
        return mx.where((y == 0) & (x == 0), mx.nan, arctan2(y, x))

    want = moved()
    monkeypatch.setattr(mx, "arctan2", undefined_at_zero)
    np.testing.assert_array_equal(moved(), want)


def numbers(count: int, seed: int) -> np.ndarray:
    """Draw float32 numbers of all sizes whose squares are finite, many of them 0 of either sign."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(count) * 10.0 ** rng.integers(-30, 15, count)
    return np.where(rng.random(count) < 0.2, np.copysign(0.0, drawn), drawn).astype(np.float32)


def bits(array: mx.array) -> np.ndarray:
    return np.array(array).view(np.uint32)


@pytest.mark.skipif(mx.default_device().type == mx.DeviceType.gpu, reason="as C's library has it")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_adam_atan2_is_the_formula_to_the_bit(seed, compiled):
    """That of the docstring; what is asked of arctan2 in its place changes nothing."""
    b1, b2, decay, count = 0.9, 0.95, 0.3, 20_000
    arrays = {name: mx.array(numbers(count, 10 * seed + n)) for n, name in enumerate("gpmv")}
    arrays["v"] = mx.square(arrays["v"])

    def formula(g, p, m, v, lr, step):
        m, v = m + (1.0 - b1) * (g - m), v + (1.0 - b2) * (mx.square(g) - v)
        root = mx.sqrt(v) * mx.rsqrt(1.0 - mx.power(b2, step))
        p = p * (1.0 - lr * decay) - lr / (1.0 - mx.power(b1, step)) * mx.arctan2(m, root)
        return p, m, v

    def ours(g, p, m, v, lr, step):
        optimizer, state = AdamATan2(0.0, (b1, b2), decay), {"m": m, "v": v}
        optimizer.state.update(learning_rate=lr, step=step)
        return optimizer.apply_single(g, p, state), state["m"], state["v"]

    for step in (1, 2, 1000):
        given = (*arrays.values(), mx.array(0.01), mx.array(step, dtype=mx.uint64))
        want = formula(*given[:-1], given[-1].astype(mx.float32))
        found = (mx.compile(ours) if compiled else ours)(*given)
        for have, wanted in zip(found, want):
            np.testing.assert_array_equal(bits(have), bits(wanted))


def test_a_weight_s_update_and_average_are_one_operation():
    """MLX fuses so many operations upon each other and no more; each other one is a launch."""
    optimizer = AdamATan2(0.1, weight_decay=0.3)
    weights = {"a": mx.array(normal(4))}
    optimizer.init(weights)
    state = optimizer.state

    def update(gradients, weights, average, state):
        optimizer.state = state
        moved = optimizer.apply_gradients(gradients, weights)
        return moved, EMA.average(average, moved, 0.999), optimizer.state

    found = mx.compile(update)({"a": mx.array(normal(4, seed=1))}, weights, weights, state)
    graph = io.StringIO()
    mx.export_to_dot(graph, *(array for _, array in tree_flatten(found)))
    operations = re.findall(r'label ?= ?"([^"]+)", shape=rectangle', graph.getvalue())
    assert len([name for name in operations if "ArcTan2" in name]) == 1
    assert not [name for name in operations if name in ("Square", "Multiply", "Select")]


def test_adam_atan2_accepts_a_schedule():
    optimizer = AdamATan2(lambda step: 0.1 * (step + 1))
    parameters = optimizer.apply_gradients({"a": mx.ones((1,))}, {"a": mx.zeros((1,))})
    assert parameters["a"].item() == pytest.approx(-math.atan(0.1), rel=1e-5)
    after = optimizer.apply_gradients({"a": mx.ones((1,))}, parameters)
    # Second step: lr 0.2, m = 0.19, 1 - b1**2 = 0.19, v / (1 - b2**2) = 1.
    step = after["a"].item() - parameters["a"].item()
    assert step == pytest.approx(-0.2 / 0.19 * math.atan(0.19), rel=1e-5)


@pytest.mark.parametrize("betas", [(0.9,), (1.0, 0.9), (-0.1, 0.9)])
def test_adam_atan2_refuses_bad_betas(betas):
    with pytest.raises(ValueError, match="betas"):
        AdamATan2(0.1, betas)


def test_adam_atan2_refuses_negative_decay():
    with pytest.raises(ValueError, match="weight_decay"):
        AdamATan2(0.1, weight_decay=-1.0)


@pytest.mark.parametrize(
    "step, expected",
    [(1, 0.1), (5, 0.5), (9, 0.9), (10, 1.0), (60, 0.55), (110, 0.1), (35, 0.1 + 0.9 * 0.853553)],
)
def test_schedule_warms_up_then_follows_a_cosine(step, expected):
    assert scheduled_lr(1.0, step, 10, 110, 0.1) == pytest.approx(expected, rel=1e-6)


def test_schedule_is_constant_after_warm_up_by_default():
    assert {scheduled_lr(2e-4, step, 3, 50) for step in range(3, 51)} == {2e-4}
    assert scheduled_lr(2e-4, 1, 0, 50) == 2e-4


def test_sign_sgd_sums_rows_of_one_identifier_before_the_sign():
    table = normal(6, 3)
    ids = np.array([4, 1, 4, 0, 4], np.int32)
    gradients = np.array(
        [[1, -1, 0], [2, 0, -3], [-3, -1, 0], [0, 5, 1], [1, 3, 0]], dtype=np.float32
    )
    rows = sign_sgd_rows(mx.array(table[ids]), mx.array(gradients), mx.array(ids), 0.1, 0.5)
    decayed = table * (1 - 0.1 * 0.5)
    expected = {
        4: decayed[4] - 0.1 * np.array([-1, 1, 0]),  # sums -1, 1, 0
        1: decayed[1] - 0.1 * np.array([1, 0, -1]),
        0: decayed[0] - 0.1 * np.array([0, 1, 1]),
    }
    for row, identifier in zip(np.array(rows), ids):
        np.testing.assert_allclose(row, expected[int(identifier)], atol=1e-7)


def test_ema_walks_lists_and_keeps_its_rate():
    weights = {
        "layers": [{"w": mx.array([1.0, 2.0])}, {"w": mx.array([4.0])}],
        "b": mx.array([0.0]),
    }
    average = EMA(weights, rate=0.75)
    average.update(
        {"layers": [{"w": mx.array([5.0, 2.0])}, {"w": mx.array([0.0])}], "b": mx.array([8.0])}
    )
    assert np.array_equal(np.array(average.weights["layers"][0]["w"]), [2, 2])
    assert np.array_equal(np.array(average.weights["layers"][1]["w"]), [3])
    assert np.array_equal(np.array(average.weights["b"]), [2])


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_ema_refuses_a_rate_outside_0_to_1(rate):
    with pytest.raises(ValueError, match="rate"):
        EMA({}, rate)
