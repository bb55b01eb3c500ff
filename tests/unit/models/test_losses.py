"""Losses: values and gradients against float64, at the awkward places too."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_trm.config.registry import LOSSES
from mlx_trm.models.carry import IGNORE_LABEL_ID, Outputs
from mlx_trm.models.losses import (
    act_loss,
    binary_cross_entropy,
    softmax_cross_entropy,
    stablemax_cross_entropy,
)


def np_stablemax_loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The definition in float64, position by position."""
    logits = logits.astype(np.float64)
    positive = np.where(logits < 0, 1 / (1 - np.minimum(logits, 0)), logits + 1)
    probability = positive / positive.sum(-1, keepdims=True)
    result = np.zeros(labels.shape)
    for index in np.ndindex(*labels.shape):
        if labels[index] != IGNORE_LABEL_ID:
            result[index] = -np.log(probability[index][labels[index]])
    return result


def np_stablemax_gradient(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """d(sum of losses)/d(logits) in float64, from s'(x) = s(x)**2 below 0 and 1 from 0 on."""
    logits = logits.astype(np.float64)
    below = logits < 0
    positive = np.where(below, 1 / (1 - np.minimum(logits, 0)), logits + 1)
    slope = np.where(below, positive**2, 1.0)
    result = slope / positive.sum(-1, keepdims=True)
    for index in np.ndindex(*labels.shape):
        if labels[index] == IGNORE_LABEL_ID:
            result[index] = 0
        else:
            label = labels[index]
            result[index][label] -= slope[index][label] / positive[index][label]
    return result


LOGITS = np.random.default_rng(0).normal(scale=4, size=(3, 5, 7)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 7, (3, 5)).astype(np.int32)
LABELS[0, :2] = IGNORE_LABEL_ID


def test_stablemax_values():
    result = np.array(stablemax_cross_entropy(mx.array(LOGITS), mx.array(LABELS)))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np_stablemax_loss(LOGITS, LABELS), rtol=2e-6, atol=1e-7)
    assert np.array_equal(result[0, :2], [0, 0])


@pytest.mark.parametrize("special", [1.0, 0.0, -1.0, 1.0 + 1e-7, 30.0, -1e4])
def test_stablemax_gradient_is_finite_and_right_where_a_branch_is_singular(special):
    logits = LOGITS.copy()
    logits[0, 3, :] = special
    logits[1, 2, 4] = special
    logits[2, 1, LABELS[2, 1]] = special
    gradient = mx.grad(lambda x: mx.sum(stablemax_cross_entropy(x, mx.array(LABELS))))
    result = np.array(gradient(mx.array(logits)))
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result, np_stablemax_gradient(logits, LABELS), rtol=2e-5, atol=1e-7)


def test_stablemax_gradient_at_exactly_one_in_bfloat16():
    logits = mx.ones((1, 2, 3), dtype=mx.bfloat16)
    labels = mx.array([[0, 2]])
    result = mx.grad(lambda x: mx.sum(stablemax_cross_entropy(x, labels)))(logits)
    assert result.dtype == mx.bfloat16
    # s = 2 everywhere: 1/6 for each logit, less 1/2 for the label's.
    expected = np.full((1, 2, 3), 1 / 6)
    expected[0, 0, 0] -= 0.5
    expected[0, 1, 2] -= 0.5
    np.testing.assert_allclose(np.array(result.astype(mx.float32)), expected, rtol=4e-3)


def test_softmax_values():
    wide = LOGITS.astype(np.float64)
    log_probability = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    expected = np.zeros(LABELS.shape)
    for index in np.ndindex(*LABELS.shape):
        if LABELS[index] != IGNORE_LABEL_ID:
            expected[index] = -log_probability[index][LABELS[index]]
    result = np.array(softmax_cross_entropy(mx.array(LOGITS), mx.array(LABELS)))
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_smoothing_spreads_a_share_of_the_target_over_all_tokens(share):
    wide = LOGITS.astype(np.float64)
    log_probability = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    expected = np.zeros(LABELS.shape)
    for index in np.ndindex(*LABELS.shape):
        if LABELS[index] != IGNORE_LABEL_ID:
            mean = log_probability[index].mean()
            expected[index] = -(1 - share) * log_probability[index][LABELS[index]] - share * mean
    found = softmax_cross_entropy(mx.array(LOGITS), mx.array(LABELS), share)
    np.testing.assert_allclose(np.array(found), expected, rtol=2e-6, atol=2e-6)
    outputs = Outputs(mx.array(LOGITS), mx.zeros((3,)), mx.zeros((3,)))
    args = (outputs, mx.array(LABELS), mx.ones((3,)) > 0, mx.array([1, 1, 1]), "softmax")
    loss, metrics = act_loss(*args, label_smoothing=share, halt_weight=0.05)
    rows = (expected.sum(-1) / (LABELS != IGNORE_LABEL_ID).sum(-1)).sum()
    assert metrics["lm_loss"].item() == pytest.approx(rows, rel=1e-5)
    assert loss.item() == pytest.approx(rows + 0.05 * metrics["q_halt_loss"].item(), rel=1e-5)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_wrong_shapes_are_refused(loss):
    with pytest.raises(ValueError, match=r"labels \(3, 4\) must have the shape"):
        LOSSES.get(loss)(mx.array(LOGITS), mx.array(LABELS[:, :4]))


@pytest.mark.parametrize("logit", [-60.0, -1.0, 0.0, 0.3, 60.0])
@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_binary_cross_entropy_and_its_gradient(logit, target):
    value, gradient = mx.value_and_grad(
        lambda x: mx.sum(binary_cross_entropy(x, mx.array([target])))
    )(mx.array([logit]))
    expected = np.logaddexp(0, np.float64(logit)) - logit * target
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert gradient.item() == pytest.approx(1 / (1 + np.exp(-logit)) - target, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("logit, target", [(12.0, 1.0), (30.0, 1.0), (-12.0, 0.0)])
def test_binary_cross_entropy_keeps_its_digits_where_the_model_is_sure(logit, target):
    value = binary_cross_entropy(mx.array([logit]), mx.array([target])).item()
    assert value == pytest.approx(np.log1p(np.exp(-abs(logit))), rel=1e-5)


def outputs_for(predictions: np.ndarray, q_halt: np.ndarray, target=None) -> Outputs:
    logits = np.where(np.arange(7) == predictions[..., None], 5.0, -1.0).astype(np.float32)
    q = mx.array(q_halt.astype(np.float32))
    return Outputs(mx.array(logits), q, q * 0.5, target)


def test_act_loss_metrics_count_only_halted_labelled_rows():
    labels = np.array([[1, 2, 3], [1, 2, 3], [1, -100, -100], [-100] * 3, [4, 4, 4]], np.int32)
    predictions = np.array([[1, 2, 3], [1, 2, 0], [1, 5, 5], [0, 0, 0], [4, 4, 4]])
    q_halt = np.array([2.0, 1.0, -1.0, 3.0, 1.0])
    halted = np.array([True, True, True, True, False])
    steps = np.array([3, 4, 5, 6, 7], np.int32)
    _, metrics = act_loss(
        outputs_for(predictions, q_halt), mx.array(labels), mx.array(halted), mx.array(steps)
    )
    values = {name: value.item() for name, value in metrics.items()}
    assert values["count"] == 3  # the fourth row has no label, the fifth has not halted
    assert values["exact_accuracy"] == 2
    assert values["accuracy"] == pytest.approx(1 + 2 / 3 + 1)
    assert values["steps"] == 12
    # Right where q_halt >= 0 equals "exactly right": row 0 yes, row 1 no, row 2 no.
    assert values["q_halt_accuracy"] == 1


def test_act_loss_sums_row_means_and_half_the_q_loss():
    q_halt = np.array([0.3, -0.2, 1.5])
    outputs = Outputs(mx.array(LOGITS), mx.array(q_halt.astype(np.float32)), mx.zeros((3,)))
    loss, metrics = act_loss(outputs, mx.array(LABELS), mx.ones((3,)) > 0, mx.array([1, 1, 1]))
    counts = (LABELS != IGNORE_LABEL_ID).sum(-1)
    lm = (np_stablemax_loss(LOGITS, LABELS).sum(-1) / counts).sum()
    exact = ((LOGITS.argmax(-1) == LABELS) | (LABELS == IGNORE_LABEL_ID)).all(-1)
    q = (np.logaddexp(0, q_halt) - q_halt * exact).sum()
    assert metrics["lm_loss"].item() == pytest.approx(lm, rel=1e-6)
    assert metrics["q_halt_loss"].item() == pytest.approx(q, rel=1e-6)
    assert loss.item() == pytest.approx(lm + 0.5 * q, rel=1e-6)
    assert "q_continue_loss" not in metrics


def test_act_loss_adds_the_continue_target():
    target = mx.array([0.2, 0.9, 0.5])
    predictions = np.zeros((3, 5), int)
    q_halt = np.array([1.0, -2.0, 0.0])
    args = (mx.array(LABELS), mx.ones((3,)) > 0, mx.array([1, 1, 1]))
    plain, _ = act_loss(outputs_for(predictions, q_halt), *args)
    with_target, metrics = act_loss(outputs_for(predictions, q_halt, target), *args)
    q = q_halt * 0.5
    expected = (np.logaddexp(0, q) - q * np.array([0.2, 0.9, 0.5])).sum()
    assert metrics["q_continue_loss"].item() == pytest.approx(expected, rel=1e-6)
    assert (with_target - plain).item() == pytest.approx(0.5 * expected, rel=1e-5)


def test_padding_rows_can_be_left_out_of_the_losses():
    labels = np.concatenate([LABELS, np.full((2, 5), IGNORE_LABEL_ID, np.int32)])
    logits = np.concatenate([LOGITS, LOGITS[:2]])
    q = np.array([0.3, -0.2, 1.5, 4.0, -4.0], np.float32)

    def metrics(rows: int, skip: bool) -> dict:
        outputs = Outputs(mx.array(logits[:rows]), mx.array(q[:rows]), mx.zeros((rows,)))
        halted, steps = mx.ones((rows,)) > 0, mx.ones((rows,), dtype=mx.int32)
        found = act_loss(outputs, mx.array(labels[:rows]), halted, steps, skip_unlabelled=skip)[1]
        return {name: value.item() for name, value in found.items()}

    assert metrics(5, True) == pytest.approx(metrics(3, True), rel=1e-6)
    assert metrics(5, False)["q_halt_loss"] > metrics(3, False)["q_halt_loss"] + 3.9
