"""Losses of one supervision step and the sums from which its metrics are computed.

Reference: models/losses.py.
"""

from typing import Callable, Dict, Tuple, TypeVar, cast

import mlx.core as mx

from mlx_trm.config.registry import LOSSES
from mlx_trm.models.carry import IGNORE_LABEL_ID, Outputs

Metrics = Dict[str, mx.array]
L = TypeVar("L", bound=Callable[..., mx.array])


def register_loss(name: str) -> Callable[[L], L]:
    """Register a loss under a name of ``train.loss``; use as a decorator.

    Args:
        name: what a configuration says.

    Returns:
        A decorator of a pure function of logits, (B, S, V) in any float dtype, and labels, (B, S)
        int32, that gives (B, S) float32, zero where the label is IGNORE_LABEL_ID. Where it has an
        argument ``label_smoothing``, training hands it ``train.label_smoothing``.

    Raises:
        ValueError: if the name belongs to another function.
    """
    return LOSSES.register(name)


def metric_values(metrics: Metrics) -> Dict[str, float]:
    """Fetch scalar metrics from the device as Python floats."""
    return {name: float(cast(float, value.item())) for name, value in metrics.items()}


def _stablemax(x: mx.array) -> mx.array:
    """Stablemax's positive transform: 1 / (1 - x) below zero, x + 1 from zero on.

    Both branches of ``where`` have a gradient. At x == 1 the branch not taken would be 1 / 0 and
    its gradient 0 * inf = NaN; bfloat16 logits are often exactly 1, so its input is clamped.
    """
    return mx.where(x < 0, 1.0 / (1.0 - mx.minimum(x, 0.0)), x + 1.0)


def _check_shapes(logits: mx.array, labels: mx.array) -> None:
    if tuple(labels.shape) != tuple(logits.shape[:-1]):
        raise ValueError(
            f"labels {tuple(labels.shape)} must have the shape of logits without the last axis, "
            f"{tuple(logits.shape[:-1])}"
        )


def _of_label(values: mx.array, labels: mx.array) -> mx.array:
    """Pick values[..., label]; 0 where the label is outside 0..V-1 (ignored positions)."""
    chosen = labels[..., None] == mx.arange(values.shape[-1], dtype=labels.dtype)
    return mx.sum(mx.where(chosen, values, 0.0), axis=-1)


@register_loss("stablemax")
def stablemax_cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """Cross-entropy over stablemax probabilities, one value per position.

    Args:
        logits: (B, S, V), any float dtype.
        labels: (B, S) int32; IGNORE_LABEL_ID marks positions to skip.

    Returns:
        (B, S) float32, zero where ignored.

    Raises:
        ValueError: if ``labels.shape != logits.shape[:-1]``.

    Reference: models/losses.py ``stablemax_cross_entropy``.
    """
    _check_shapes(logits, labels)
    # Differs from reference: float32, not float64, which Metal and CUDA lack in MLX. It costs about
    # 1e-6 relative in the loss and 2e-7 in the gradients.
    positive = _stablemax(logits.astype(mx.float32))
    valid = labels != IGNORE_LABEL_ID
    chosen = mx.where(valid, _of_label(positive, labels), 1.0)
    log_probability = mx.log(chosen) - mx.log(mx.sum(positive, axis=-1))
    return mx.where(valid, -log_probability, 0.0)


@register_loss("softmax")
def softmax_cross_entropy(
    logits: mx.array, labels: mx.array, label_smoothing: float = 0.0
) -> mx.array:
    """Cross-entropy over softmax probabilities, one value per position.

    Args:
        logits: (B, S, V), any float dtype.
        labels: (B, S) int32; IGNORE_LABEL_ID marks positions to skip.
        label_smoothing: share s of each target that is spread evenly over all V tokens: the loss is
            ``-(1 - s) * log p[label] - s * mean(log p)``.

    Returns:
        (B, S) float32, zero where ignored.

    Raises:
        ValueError: if ``labels.shape != logits.shape[:-1]``.

    Reference: models/losses.py ``softmax_cross_entropy``.
    """
    _check_shapes(logits, labels)
    # Differs from reference: usable as train.loss; there the loss head calls it with an argument it
    # does not take, and it views logits that are not contiguous, so it crashes either way.
    wide = logits.astype(mx.float32)
    wanted = _of_label(wide, labels)
    if label_smoothing:
        wanted = (1.0 - label_smoothing) * wanted + label_smoothing * mx.mean(wide, axis=-1)
    log_probability = wanted - mx.logsumexp(wide, axis=-1)
    return mx.where(labels != IGNORE_LABEL_ID, -log_probability, 0.0)


def binary_cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Binary cross-entropy with logits, elementwise, float32.

    Args:
        logits: (B,) float32.
        targets: (B,) float32 in [0, 1].

    Returns:
        (B,) float32.
    """
    zero = mx.zeros_like(logits)
    # log(1 + exp(-x)) and log(1 + exp(x)): no difference of large numbers, at any confidence.
    return targets * mx.logaddexp(-logits, zero) + (1.0 - targets) * mx.logaddexp(logits, zero)


def answer_losses(
    logits: mx.array, labels: mx.array, loss: str = "stablemax", label_smoothing: float = 0.0
) -> mx.array:
    """Give each row's mean loss over its labelled positions.

    Args:
        logits: (B, S, V), any float dtype.
        labels: (B, S) int32; IGNORE_LABEL_ID marks positions to skip.
        loss: a name of :func:`register_loss`.
        label_smoothing: for a loss that takes it.

    Returns:
        (B,) float32, zero for a row without labels.

    Raises:
        ValueError: if the loss gives another shape than that of the labels.
    """
    smoothing = {"label_smoothing": label_smoothing} if label_smoothing else {}
    of_cells: mx.array = LOSSES.get(loss)(logits, labels, **smoothing)
    if of_cells.shape != labels.shape:  # (B,), say, would be summed over the rows without a word
        raise ValueError(f"gave {of_cells.shape} for labels {labels.shape}; it has to be the same")
    counts = mx.sum(labels != IGNORE_LABEL_ID, axis=-1)
    return mx.sum(of_cells, axis=-1) / mx.maximum(counts, 1).astype(mx.float32)


def act_loss(
    outputs: Outputs,
    labels: mx.array,
    halted: mx.array,
    steps: mx.array,
    loss: str = "stablemax",
    skip_unlabelled: bool = False,
    label_smoothing: float = 0.0,
    halt_weight: float = 0.5,
) -> Tuple[mx.array, Metrics]:
    """The loss of one supervision step, and metric sums over the rows that halted in it.

    loss = lm + halt_weight * (q_halt + q_continue), each summed over rows; the language-model term
    is each row's mean over its labelled positions. Divide by the global batch size before
    differentiating.

    Args:
        outputs: of the step; logits (B, S, V), q_halt (B,).
        labels: (B, S) int32 of the puzzles the rows worked on.
        halted: (B,) bool, after the step.
        steps: (B,) int32, after the step.
        loss: ``stablemax``, ``softmax``, or another name of :func:`register_loss`.
        skip_unlabelled: leave rows without any label (padding) out of the losses. The reference
            counts such a row as answered right in the Q loss, and so does training here.
        label_smoothing: for a loss that takes it, see :func:`softmax_cross_entropy`.
        halt_weight: of the Q losses; 0.5 in the reference.

    Returns:
        The loss, a float32 scalar, and float32 scalars by name: ``count`` (rows that halted and
        have a label) and, over those rows, the sums of ``accuracy`` (share of right cells),
        ``exact_accuracy``, ``q_halt_accuracy`` and ``steps``; over all rows the sums ``lm_loss``,
        ``q_halt_loss`` and, where there is a target, ``q_continue_loss``.

    Reference: models/losses.py ``ACTLossHead``.
    """
    valid = labels != IGNORE_LABEL_ID
    counts = mx.sum(valid, axis=-1)
    divisor = mx.maximum(counts, 1).astype(mx.float32)
    correct = valid & (mx.argmax(outputs.logits, axis=-1) == labels)
    correct_counts = mx.sum(correct, axis=-1)
    exact = correct_counts == counts
    counted = halted & (counts > 0)

    def total(values: mx.array) -> mx.array:
        return mx.sum(mx.where(counted, values, 0).astype(mx.float32))

    def over_rows(values: mx.array) -> mx.array:
        # Differs from reference: evaluation leaves padding rows out of the losses, so that they do
        # not depend on the batch size.
        return mx.sum(mx.where(counts > 0, values, 0.0) if skip_unlabelled else values)

    lm_loss = mx.sum(answer_losses(outputs.logits, labels, loss, label_smoothing))
    q_halt_loss = over_rows(binary_cross_entropy(outputs.q_halt, exact.astype(mx.float32)))
    q_loss = q_halt_loss
    metrics = {
        "count": mx.sum(counted).astype(mx.float32),
        "accuracy": total(correct_counts.astype(mx.float32) / divisor),
        "exact_accuracy": total(exact),
        "q_halt_accuracy": total((outputs.q_halt >= 0) == exact),
        "steps": total(steps),
        "lm_loss": lm_loss,
        "q_halt_loss": q_halt_loss,
    }
    if outputs.target_q_continue is not None:
        metrics["q_continue_loss"] = over_rows(
            binary_cross_entropy(outputs.q_continue, outputs.target_q_continue)
        )
        q_loss = q_loss + metrics["q_continue_loss"]
    return lm_loss + halt_weight * q_loss, metrics


def loss_scale(dtype: mx.Dtype, batch_size: int) -> float:
    """Give what the loss is multiplied by so that gradients of activations do not vanish.

    Divided by a batch of 768 and 81 cells they are about 1e-5, where float16 has few digits left
    and then none: of a small model 1.1 % of the row gradients became 0, and the others were 10 %
    off. With this scale they are 1.6 % off, less than in bfloat16, which needs none. It is a power
    of two, so that weights' gradients, which are float32, are scaled back exactly.
    """
    return float(2 ** (batch_size.bit_length() - 1)) if dtype == mx.float16 else 1.0
