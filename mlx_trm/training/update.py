"""What a supervision step computes: gradients of some rows, and every update from their sums.

One pure function differentiates the rows it is given, another applies what was summed over all
rows. A whole batch goes through both in one compiled function, micro-batches through the first one
by one.

Reference: ``train_batch`` in pretrain.py.
"""

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

import mlx.core as mx
from mlx.optimizers import Optimizer
from mlx.utils import tree_map, tree_unflatten

from mlx_trm.config.sections import TrainConfig
from mlx_trm.inference.step import should_compile
from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.models.base import Tree
from mlx_trm.models.carry import Batch, Carry, with_noise
from mlx_trm.models.losses import Metrics, act_loss, loss_scale
from mlx_trm.system.device import on_gpu
from mlx_trm.system.environment import prepare_temporary_folder
from mlx_trm.system.streams import added, joined, over_rows
from mlx_trm.training.chains import Chains
from mlx_trm.training.nonfinite import all_finite
from mlx_trm.training.optim import EMA, clip_norm, rate_factors, sign_sgd_rows

# What a step updates: trees called weights, optimizer and, where the average runs, average.
State = Dict[str, Tree]
# What a batch has for each of its rows, where the model has a puzzle table, or draws at random.
Rows = Optional[mx.array]


class StepFunctions(NamedTuple):
    """The functions of a step, compiled where that pays.

    Attributes:
        whole: of a batch at once: ``differentiate``, then ``update``.
        differentiate: gives gradients of the weights and of the puzzle rows (None), the new carry
            and the metrics, of a micro-batch.
        update: gives the new state, the new puzzle rows, whether all was finite, and more metrics.
    """

    whole: Callable[..., Tuple]
    differentiate: Callable[..., Tuple]
    update: Callable[..., Tuple]


def make_step_functions(
    train: TrainConfig,
    model: RecursiveModel,
    optimizer: Optimizer,
    cycles: Optional[Tuple[int, int]] = None,
) -> StepFunctions:
    """Make the functions of a step; this is the only place where they are compiled.

    Args:
        train: the recipe.
        model: its structure is used, its weights are arguments.
        optimizer: its rule is used, its state is an argument.
        cycles: H_cycles and L_cycles of a curriculum's stage; None: the model's own.
    """
    compiled = should_compile(train.compile, model)
    if compiled:
        prepare_temporary_folder()
    on_cpu = compiled and not on_gpu()
    differentiate = make_differentiate(train, model, cycles, on_cpu)
    update = make_update(train, optimizer, rate_factors(train, model))

    def whole(
        state: State, initial: Tree, packed: Tuple, batch: Tuple, rows: Rows,
        min_steps: mx.array, keys: Rows, puzzle_lr: mx.array,
    ) -> Tuple:  # fmt: skip
        gradients, row_gradients, packed, metrics = differentiate(
            state["weights"], initial, packed, batch, rows, min_steps, keys
        )
        identifiers = packed[3][2]
        loss = metrics["lm_loss"] + metrics["q_halt_loss"]
        new, rows, finite, more = update(
            state, gradients, rows, row_gradients, identifiers, puzzle_lr, loss
        )
        return new, packed, rows, {**metrics, **more}, finite

    if on_cpu:
        update = mx.compile(update)
    functions = (whole, differentiate, update)
    if compiled and not on_cpu:
        functions = tuple(mx.compile(function) for function in functions)  # type: ignore
    return StepFunctions(*functions)


def make_differentiate(
    train: TrainConfig,
    model: RecursiveModel,
    cycles: Optional[Tuple[int, int]],
    compiled: bool,
) -> Callable[..., Tuple]:
    """Make what gives the gradients of some rows; see :class:`StepFunctions`.

    Args:
        train: the recipe.
        model: its structure is used.
        cycles: see :func:`make_step_functions`.
        compiled: compile what is done with a stream's share of the rows.
    """
    scale = loss_scale(model.dtype, train.batch_size)
    chains = Chains(train, model)

    @contextmanager
    def setting(weights: Tree, keys: Rows) -> Iterator[None]:
        """Compute with these weights, in the stage's cycles, with noise where there is any."""
        with ExitStack() as stack:
            stack.enter_context(model.using(weights))
            stack.enter_context(with_noise(keys))
            if cycles is not None:
                stack.enter_context(model.with_cycles(*cycles))
            yield

    def loss_fn(weights: Tree, rows: Rows, packed: Tuple, min_steps: mx.array, keys: Rows) -> Tuple:
        with setting(weights, keys):
            carry, outputs = model.step(Carry.unpack(packed), rows, min_steps)
        loss, metrics = act_loss(
            outputs,
            carry.current.labels,
            carry.halted,
            carry.steps,
            train.loss,
            label_smoothing=train.label_smoothing,
            halt_weight=train.halt_loss_weight,
        )
        return loss * (scale / train.batch_size), carry.pack(), metrics

    def share(weights: Tree, rows: Rows, packed: Tuple, min_steps: mx.array, keys: Rows) -> Tuple:
        """Give what is summed over shares of the rows, and what is put behind each other."""
        if chains.count > 1:
            of_all = None if keys is None else chains.repeat(keys)
            winner, others = chains.race(Carry.unpack(packed), rows, setting(weights, of_all))
            packed = winner.pack()
        function: Any = mx.value_and_grad(loss_fn, 0 if rows is None else (0, 1))
        (_, packed, metrics), found = function(weights, rows, packed, min_steps, keys)
        if chains.count > 1:
            packed = chains.join(Carry.unpack(packed), others).pack()
        gradients, of_rows = (found, None) if rows is None else found
        return (gradients, metrics), (of_rows, packed)

    if compiled:
        share = mx.compile(share)

    def differentiate(
        weights: Tree, initial: Tree, packed: Tuple, batch: Tuple, rows: Rows,
        min_steps: mx.array, keys: Rows,
    ) -> Tuple:  # fmt: skip
        with model.using(initial):
            carry = chains.begin(Carry.unpack(packed), Batch(*batch), keys)
        function = partial(share, weights)
        found = over_rows(function, carry.extent, rows, carry.pack(), min_steps, keys)
        gradients, metrics = added([sums for sums, _ in found])
        row_gradients, packed = joined([by_row for _, by_row in found])
        if scale != 1.0:
            gradients, row_gradients = tree_map(
                lambda gradient: None if gradient is None else gradient * (1.0 / scale),
                (gradients, row_gradients),
            )
        return gradients, row_gradients, packed, metrics

    return differentiate


def make_update(
    train: TrainConfig, optimizer: Optimizer, factors: Dict[str, float]
) -> Callable[..., Tuple]:
    """Make what moves everything that is trained; see :class:`StepFunctions`."""

    def update(
        state: State, gradients: Tree, rows: Rows, row_gradients: Rows, identifiers: Rows,
        puzzle_lr: mx.array, loss: mx.array,
    ) -> Tuple:  # fmt: skip
        # The gradients are those of the whole batch: of all micro-batches and processes, unscaled.
        more: Metrics = {}
        if train.grad_clip is not None:
            gradients, more["grad_norm"] = clip_norm(gradients, train.grad_clip)
            loss = loss + more["grad_norm"]  # the squares of finite numbers may be infinite
        leaves = [leaf for _, leaf in named_arrays(gradients)]
        leaves += [] if row_gradients is None else [row_gradients]
        finite = all_finite([loss, *leaves])
        new = dict(state)
        if train.freeze != "weights":
            # A copy: the optimiser writes into the dicts of its state.
            optimizer.state = tree_map(lambda leaf: leaf, state["optimizer"])
            moved = optimizer.apply_gradients(gradients, state["weights"])
            new["weights"] = scale_moves(state["weights"], moved, factors)
            new["optimizer"] = optimizer.state
            if "average" in state:
                new["average"] = EMA.average(state["average"], new["weights"], train.ema_rate)
        if train.freeze == "puzzle_emb":
            return new, rows, finite, more
        if rows is not None and row_gradients is not None and identifiers is not None:
            rows = sign_sgd_rows(
                rows, row_gradients, identifiers, puzzle_lr, train.puzzle_emb_weight_decay
            )
        return new, rows, finite, more

    return update


def scale_moves(old: Tree, new: Tree, factors: Dict[str, float]) -> Tree:
    """Move some weights by a multiple of what an optimiser has moved them by.

    Every optimiser here moves a weight, decay included, by a multiple of its rate. So this is what
    another rate would have given, whichever optimiser it is.

    Args:
        old: the weights before.
        new: the weights after.
        factors: by name; all other weights stay as they are in ``new``.
    """
    if not factors:
        return new
    before, after = dict(named_arrays(old)), dict(named_arrays(new))
    for name, factor in factors.items():
        after[name] = before[name] + factor * (after[name] - before[name])
    moved: Tree = tree_unflatten(list(after.items()))
    return moved
