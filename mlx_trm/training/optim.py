"""The optimisers by name, AdamATan2, the schedule, SignSGD for the puzzle table, and the EMA.

Reference: the adam_atan2 package, models/sparse_embedding.py, models/ema.py, and
``cosine_schedule_with_warmup_lr_lambda`` in pretrain.py.
"""

import math
from fnmatch import fnmatchcase
from typing import Callable, Dict, Sequence, Tuple, Union

import mlx.core as mx
from mlx.optimizers import AdamW, Optimizer
from mlx.utils import tree_map

from mlx_trm.config.plugins import locate_in_plugin
from mlx_trm.config.registry import OPTIMIZERS
from mlx_trm.config.sections import TrainConfig
from mlx_trm.errors import ConfigError, describe_error
from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.models.base import Tree
from mlx_trm.training.muon import Muon

MakeOptimizer = Callable[[TrainConfig, RecursiveModel], Optimizer]


class AdamATan2(Optimizer):
    """Adam whose ratio m / (sqrt(v) + eps) is replaced by atan2(m, sqrt(v)): no epsilon.

    With decoupled weight decay, for a parameter p with gradient g at step t = 1, 2, ...:

        p <- p * (1 - lr * weight_decay)
        m <- m + (1 - b1) * (g - m)
        v <- v + (1 - b2) * (g * g - v)
        p <- p - lr / (1 - b1**t) * atan2(m, sqrt(v) / sqrt(1 - b2**t))

    The first bias correction stands outside the arc tangent, as in the reference's kernel.
    """

    def __init__(
        self,
        learning_rate: Union[float, Callable[[mx.array], mx.array]],
        betas: Sequence[float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        """Create the optimiser.

        Args:
            learning_rate: a number, or a function of the step.
            betas: decay rates of the two moments, each in [0, 1).
            weight_decay: decoupled, multiplied by the learning rate.

        Raises:
            ValueError: if a beta is outside [0, 1) or the decay is negative.
        """
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {tuple(betas)}")
        if weight_decay < 0.0:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)
        self.betas = tuple(betas)
        self.weight_decay = weight_decay

    def init_single(self, parameter: mx.array, state: Dict[str, mx.array]) -> None:
        """Start both moments of a parameter at zero."""
        state["m"] = mx.zeros_like(parameter)
        state["v"] = mx.zeros_like(parameter)

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: Dict[str, mx.array]
    ) -> mx.array:
        """Update one parameter and its moments; all arrays have the parameter's shape."""
        lr = self.learning_rate.astype(parameter.dtype)
        b1, b2 = self.betas
        count = self.step.astype(mx.float32)
        m = state["m"] + (1.0 - b1) * (gradient - state["m"])
        v = state["v"] + (1.0 - b2) * (mx.square(gradient) - state["v"])
        state["m"], state["v"] = m, v
        root = mx.sqrt(v) * mx.rsqrt(1.0 - mx.power(b2, count))
        decayed = parameter * (1.0 - lr * self.weight_decay)
        rate = lr / (1.0 - mx.power(b1, count))
        # The angle of 0 to 0, of a weight that has had no gradient yet, is 0 by C's library and
        # undefined by Metal's. So where m is 0, of either sign, it takes the rate's place, and the
        # angle is that of 1. The root has no condition: MLX fuses chains of up to 11 operations,
        # and so many lead from the gradient's square over the root to the average; with one more
        # the square was a kernel of its own.
        zero = m == 0.0
        angle = mx.arctan2(mx.where(zero, 1.0, m), root)
        return decayed - mx.where(zero, m, rate) * angle


def register_optimizer(name: str) -> Callable[[MakeOptimizer], MakeOptimizer]:
    """Register what makes an optimiser under a name of ``train.optimizer``; use as a decorator.

    Args:
        name: what a configuration says.

    Returns:
        A decorator of a function of the ``train`` section and the model that gives an
        ``mlx.optimizers.Optimizer``, pure in ``apply_single``. Before each step its
        ``learning_rate`` is set to the scheduled ``train.lr``, and each entry of its state that a
        dict ``other_rates`` names, where it has one, to the rate given there times the schedule.

    Raises:
        ValueError: if the name belongs to another function.
    """
    return OPTIMIZERS.register(name)


@register_optimizer("adam_atan2")
def make_adam_atan2(train: TrainConfig, model: RecursiveModel) -> Optimizer:
    """Make AdamATan2 for all weights, as in the reference."""
    del model
    return AdamATan2(0.0, (train.beta1, train.beta2), train.weight_decay)


@register_optimizer("adamw")
def make_adamw(train: TrainConfig, model: RecursiveModel) -> Optimizer:
    """Make AdamW with bias correction for all weights."""
    del model
    betas = [train.beta1, train.beta2]
    return AdamW(0.0, betas, weight_decay=train.weight_decay, bias_correction=True)


@register_optimizer("muon")
def make_muon(train: TrainConfig, model: RecursiveModel) -> Optimizer:
    """Make Muon for the blocks' matrices, AdamW for embeddings, heads and biases.

    Raises:
        ConfigError: if the model names no such matrices.
    """
    matrices = model.block_matrices()
    if not matrices:
        name = model.config.name
        raise ConfigError(f"train.optimizer: model {name} names no matrices for muon; use adamw")
    return Muon(
        matrices,
        train.muon_lr,
        train.muon_momentum,
        train.muon_steps,
        train.muon_weight_decay,
        (train.beta1, train.beta2),
        train.weight_decay,
    )


def make_optimizer(train: TrainConfig, model: RecursiveModel) -> Optimizer:
    """Make the optimiser that a configuration names, its moments at zero.

    Raises:
        ConfigError: if none has that name, or the one that a plugin registered fails.
    """
    make, weights = OPTIMIZERS.get(train.optimizer), model.trained_weights()
    try:
        optimizer: Optimizer = make(train, model)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"gave {optimizer!r}, not an mlx.optimizers.Optimizer")
        optimizer.init(weights)
        # Each step sets these; here, too, or a state of which they are new could not be resumed.
        optimizer.learning_rate = train.lr
        for name, rate in getattr(optimizer, "other_rates", {}).items():
            optimizer.state[name] = mx.array(float(rate))
        _try_step(optimizer, weights)
    except ConfigError:
        raise
    except Exception as error:  # pylint: disable=broad-exception-caught
        # Whatever a plugin's function raises is its author's to mend.
        raise ConfigError(
            f"train.optimizer: {train.optimizer}: {type(error).__name__}: {describe_error(error)}"
            f"{locate_in_plugin(error)}"
        ) from error
    return optimizer


def _try_step(optimizer: Optimizer, weights: Tree) -> None:
    """Describe a step without computing it: what fails shall fail before a folder is made.

    Raises:
        ValueError: if a weight would get another shape.
    """
    state = tree_map(lambda leaf: leaf, optimizer.state)  # a copy: it is written into
    moved = optimizer.apply_gradients(tree_map(mx.zeros_like, weights), weights)
    for (name, old), (_, new) in zip(named_arrays(weights), named_arrays(moved)):
        if old.shape != new.shape:
            raise ValueError(f"{name} is {old.shape}, and a step makes it {new.shape}")
    optimizer.state = state


def rate_factors(train: TrainConfig, model: RecursiveModel) -> Dict[str, float]:
    """Give the factors of ``train.lr_scale`` by names of weights; those left out have factor 1.

    Raises:
        ConfigError: if a pattern matches no weight.
    """
    names = [name for name, _ in named_arrays(model.trained_weights())]
    found: Dict[str, float] = {}
    for pattern, factor in train.rate_factors():
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(
                f"train.lr_scale: {pattern!r} matches no weight (there are {', '.join(names)})"
            )
        found.update(dict.fromkeys(matching, factor))
    return found


def scheduled_lr(
    base: float,
    step: int,
    warmup_steps: int,
    total_steps: int,
    min_ratio: float = 1.0,
    share: float = 0.0,
) -> float:
    """Linear warm-up, then a cosine to ``base * min_ratio`` at ``total_steps``.

    Args:
        base: the learning rate after warm-up.
        step: counted from 1.
        warmup_steps: steps of warm-up; step ``s`` of them has ``base * s / warmup_steps``.
        total_steps: steps of the whole run.
        min_ratio: 1.0 keeps the rate constant.
        share: how far the cosine is at least, from 0 to 1: the share of the run's time.

    Returns:
        The learning rate of this step.
    """
    if step < warmup_steps:
        return base * step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * max(progress, share)))
    return base * (min_ratio + max(0.0, (1.0 - min_ratio) * cosine))


def clip_norm(gradients: Tree, most: float) -> Tuple[Tree, mx.array]:
    """Scale gradients so that their norm, over all of them together, is at most a number.

    Returns:
        The gradients, and the norm that they had, a float32 scalar.
    """
    squares = [mx.sum(mx.square(gradient)) for _, gradient in named_arrays(gradients)]
    norm = mx.sqrt(sum(squares[1:], squares[0]))
    factor = mx.minimum(1.0, most / mx.maximum(norm, 1e-30))
    return tree_map(lambda gradient: gradient * factor, gradients), norm


def sign_sgd_rows(
    rows: mx.array,
    gradients: mx.array,
    identifiers: mx.array,
    lr: mx.array,
    weight_decay: float,
) -> mx.array:
    """SignSGD with decoupled decay on the puzzle-table rows of a batch.

    The gradients of equal identifiers are summed before the sign is taken; each of them then gets
    the same updated row, so writing all B rows back in any order gives one result.

    Args:
        rows: (B, E) float32, the table's rows at ``identifiers``.
        gradients: (B, E) float32, one row a batch row.
        identifiers: (B,) int32.
        lr: scalar, the puzzle table's own learning rate.
        weight_decay: the puzzle table's own decay.

    Returns:
        (B, E) float32, the updated rows.

    Reference: models/sparse_embedding.py ``CastedSparseEmbeddingSignSGD_Distributed``.
    """
    # A matrix product, not a scatter-add: its order of summation is fixed on every device, and
    # nothing leaves the device to find the unique identifiers. GPUs may round a float32 product's
    # inputs to TF32, so the gradients go in as three parts that TF32 and bfloat16 hold exactly.
    parts, rest = [], gradients
    for _ in range(3):
        parts.append(rest.astype(mx.bfloat16).astype(mx.float32))
        rest = rest - parts[-1]
    same = (identifiers[:, None] == identifiers[None, :]).astype(mx.float32)
    sums = mx.split(same @ mx.concatenate(parts, axis=-1), 3, axis=-1)
    return rows * (1.0 - lr * weight_decay) - lr * mx.sign(sums[0] + (sums[1] + sums[2]))


class EMA:
    """Exponential moving average of the trained weights, evaluated in their place.

    Attributes:
        rate: weight of the past, 0.999 in the paper's recipes.
        weights: tree of float32 arrays, like the tree given.

    Reference: models/ema.py ``EMAHelper``.
    """

    def __init__(self, weights: Tree, rate: float = 0.999) -> None:
        """Start the average at ``weights``.

        Raises:
            ValueError: if ``rate`` is outside [0, 1].
        """
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate must be between 0 and 1, got {rate}")
        self.rate = rate
        self.weights = weights

    def update(self, weights: Tree) -> None:
        """Move the average towards ``weights``, a tree of the same structure."""
        self.weights = self.average(self.weights, weights, self.rate)

    @staticmethod
    def average(past: Tree, weights: Tree, rate: float) -> Tree:
        """Give ``(1 - rate) * weights + rate * past``, leaf by leaf."""
        return tree_map(lambda new, old: (1.0 - rate) * new + rate * old, weights, past)
