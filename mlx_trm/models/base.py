"""What every ACT model shares: the carry, the puzzle table, halting, and one supervision step.

A variant writes ``__init__`` and ``reason``. Everything here is pure in the arrays it is given, so
that the trainer and the evaluator can compile it.

Reference: models/recursive_reasoning/trm.py, the ACT wrapper and ``_input_embeddings``.
"""

import copyreg
import dataclasses
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple, Type, Union

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_trm.config.registry import MODELS
from mlx_trm.config.sections import ModelConfig, TaskSpec
from mlx_trm.errors import ConfigError
from mlx_trm.models.carry import (
    Batch,
    Carry,
    Outputs,
    check_batch,
    draw_normal,
    empty_carry,
    halt,
    refill,
    split_keys,
)
from mlx_trm.nn.functional import scaled, set_within
from mlx_trm.nn.layers import PuzzleEmbedding
from mlx_trm.system.device import on_gpu
from mlx_trm.system.environment import refuse_after_fork

# A tree of arrays by name, as MLX has parameters: their averages, gradients and moments, too.
Tree = Dict[str, Union[mx.array, "Tree", List["Tree"]]]

# The cycles that a model shall run instead of its configuration's, and which model: one that is
# evaluated meanwhile, or by another thread, runs its own.
_CYCLES: ContextVar[Optional[Tuple["RecursiveModel", int, int]]] = ContextVar(
    "cycles of a curriculum", default=None
)

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def _dtype_named(name: str) -> Any:
    return getattr(mx, name)


# MLX's dtypes cannot be pickled or copied, and each model holds its own; with this all of it can.
copyreg.pickle(mx.Dtype, lambda dtype: (_dtype_named, (str(dtype).rpartition(".")[2],)))


def resolve_dtype(name: str) -> mx.Dtype:
    """Turn a ``forward_dtype`` into an MLX dtype.

    Args:
        name: float32, bfloat16, float16, or auto: bfloat16 on a GPU and float32 on the CPU, where
            half-precision products are slow.
    """
    if name == "auto":
        name = "bfloat16" if on_gpu() else "float32"
    return DTYPES[name]


class RecursiveModel(nn.Module):  # pylint: disable=too-many-public-methods
    """Base of every model that refines its answer over supervision steps.

    A subclass sets ``initial_names``, builds its layers in ``__init__`` and implements
    :meth:`reason`. Shape letters are those of :mod:`mlx_trm.models.carry`.

    Attributes:
        config: the model's configuration.
        spec: the task's dimensions.
        dtype: dtype of activations, latents and logits.
        positions: P, the puzzle-embedding positions before the sequence.
    """

    initial_names: Tuple[str, ...] = ()

    def __init__(self, config: Any, spec: TaskSpec, positions: int) -> None:
        """Keep the dimensions; subclasses add the layers.

        Args:
            config: with ``forward_dtype``, ``puzzle_emb_ndim`` (a number), ``hidden_size``,
                ``halt_max_steps``, ``halt_exploration_prob`` and, unless the subclass overrides
                :attr:`compares_continue` and :attr:`has_continue_target`, ``no_ACT_continue``.
            spec: the task's dimensions.
            positions: P.
        """
        super().__init__()
        self.config = config
        self.spec = spec
        self.positions = positions
        self.dtype = resolve_dtype(self.config.forward_dtype)
        if self.config.puzzle_emb_ndim > 0:
            self.puzzle_emb = PuzzleEmbedding(
                spec.num_puzzle_identifiers, self.config.puzzle_emb_ndim
            )

    # How rows halt, and what is learnt about it -------------------------------------------------

    @property
    def halts_early(self) -> bool:
        """Whether a row may halt before halt_max_steps; by default in training only."""
        return bool(self.training)

    @property
    def compares_continue(self) -> bool:
        """Whether a row halts where q_halt > q_continue, instead of where q_halt > 0."""
        return not self.config.no_ACT_continue

    @property
    def has_continue_target(self) -> bool:
        """Whether training gives q_continue a target, at the price of a second forward pass."""
        return not self.config.no_ACT_continue

    @property
    def differentiated_blocks(self) -> int:
        """Blocks that a train step differentiates, for the memory estimate; 0: not known."""
        return 0

    @property
    def cycles(self) -> Tuple[int, int]:
        """H_cycles and L_cycles of a step: the configuration's, or those of :meth:`with_cycles`."""
        other = _CYCLES.get()
        if other is not None and other[0] is self:
            return other[1:]
        return self.config.H_cycles, self.config.L_cycles

    @contextmanager
    def with_cycles(self, H: int, L: int) -> Iterator[None]:
        """Run other numbers of cycles in a ``with`` block: fewer at the start of a curriculum.

        It holds for the thread that is in the block. A compiled function keeps those it was traced
        with, so each pair wants one of its own.

        Raises:
            ConfigError: if the model has no such cycles, or cannot run so many.
        """
        if not (hasattr(self.config, "H_cycles") and hasattr(self.config, "L_cycles")):
            raise ConfigError(f"model {self.config.name}: has no H_cycles and L_cycles to change")
        changed = dataclasses.replace(self.config, H_cycles=H, L_cycles=L)
        problems = changed.problems() if min(H, L) > 0 else ["must be at least 1 each"]
        if problems:
            raise ConfigError(
                f"model {self.config.name}: {H} H_cycles and {L} L_cycles: {problems[0]}"
            )
        with set_within(_CYCLES, (self, H, L)):
            yield

    def row_bytes(self, training: bool) -> int:
        """Estimate the bytes that a row of the batch takes in a step; 0: not known.

        :mod:`mlx_trm.models.memory` knows it of the reference's models, and asks others.
        """
        del training
        return 0

    def recompute(self, on: bool) -> None:
        """Choose whether blocks are computed again for the gradient instead of being kept."""
        for module in self.modules():
            if hasattr(module, "recomputed"):
                module.recomputed = on

    # The parts of a step, in order -------------------------------------------------------------

    def initial_carry(self, batch: Batch) -> Carry:
        """Make the carry before the first step, every row halted and so about to be refilled."""
        shape = (self.positions + self.spec.seq_len, self.config.hidden_size)
        return empty_carry(batch, shape, len(self.initial_names), self.dtype)

    @property
    def needs_keys(self) -> bool:
        """Whether training draws random numbers for its rows: their starts, or noise."""
        config = self.config
        return getattr(config, "start", "fixed") == "random" or getattr(config, "noise", 0) > 0

    def initial_state(self, name: str) -> mx.array:
        """Give the fixed state, (D,), that a latent of ``initial_names`` starts from."""
        state: mx.array = self[name]
        return state

    def starts(self, keys: Optional[mx.array] = None, random: Optional[bool] = None) -> Tree:
        """Give what each latent starts from, by name.

        Args:
            keys: (B, 2) uint32 of ``row_keys`` in carry.py.
            random: draw every latent but the answer's, which is the first; default: where
                ``model.start`` is random and there are keys.

        Returns:
            Arrays (D,), the model's own; those drawn are (B, T, D) in the latents' dtype, each row
            decided by its key alone.

        Raises:
            ValueError: if they shall be random and there are no keys.
        """
        if random is None:
            random = keys is not None and getattr(self.config, "start", "fixed") == "random"
        found: Tree = {name: self.initial_state(name) for name in self.initial_names}
        if not random:
            return found
        if keys is None:
            raise ValueError("random starts need keys, (B, 2) uint32")
        shape = (self.positions + self.spec.seq_len, self.config.hidden_size)
        of_latents = split_keys(keys, len(self.initial_names))
        for name, own in list(zip(self.initial_names, of_latents))[1:]:
            found[name] = draw_normal(own, shape, self.dtype)
        return found

    def begin(self, carry: Carry, batch: Batch, starts: Optional[Tree] = None) -> Carry:
        """Refill the halted rows from ``batch``, their latents from :meth:`starts`."""
        starts = self.starts() if starts is None else starts
        found = dict(named_arrays(starts))
        return refill(carry, batch, [found[name] for name in self.initial_names])

    def puzzle_rows(self, carry: Carry) -> Optional[mx.array]:
        """Look up the rows' puzzle vectors, (B, puzzle_emb_ndim) float32; None without a table.

        They are an argument of :meth:`reason` and not a parameter, so that a table of a million
        rows is never touched whole: only these rows are differentiated.
        """
        if self.config.puzzle_emb_ndim == 0:
            return None
        return self.puzzle_emb(carry.current.puzzle_identifiers)

    def reason(
        self, carry: Carry, rows: Optional[mx.array]
    ) -> Tuple[Tuple[mx.array, ...], Outputs]:
        """Run the recursion once.

        Args:
            carry: after :meth:`begin`.
            rows: from :meth:`puzzle_rows`.

        Returns:
            The new latents, each (B, T, D) and without gradient, and the outputs.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement reason(carry, rows)")

    def halt(self, carry: Carry, outputs: Outputs, min_steps: Optional[mx.array] = None) -> Carry:
        """Count the step and mark the rows that are finished.

        Args:
            carry: with the latents that :meth:`reason` gave.
            outputs: of the same step.
            min_steps: (B,) int32 of ``exploration_minimum`` in carry.py, in training.
        """
        steps = carry.steps + 1
        halted = halt(
            steps,
            outputs,
            self.config.halt_max_steps,
            self.halts_early,
            min_steps,
            compare_continue=self.compares_continue,
        )
        return carry._replace(steps=steps, halted=halted)

    # A whole step ------------------------------------------------------------------------------

    def step(
        self, carry: Carry, rows: Optional[mx.array], min_steps: Optional[mx.array] = None
    ) -> Tuple[Carry, Outputs]:
        """Reason and halt, for a carry already refilled by :meth:`begin`.

        In training, and with :attr:`has_continue_target`, the outputs gain that target: the value
        that a second forward pass from the new carry gives, without gradient.
        """
        latents, outputs = self.reason(carry, rows)
        carry = self.halt(carry._replace(latents=latents), outputs, min_steps)
        if self.training and self.config.halt_max_steps > 1 and self.has_continue_target:
            # Differs from reference: no_ACT_continue=False works for trm as it does for hrm; there
            # it crashes on unpacking.
            _, after = self.reason(carry, rows)
            last = carry.steps >= self.config.halt_max_steps
            value = mx.where(last, after.q_halt, mx.maximum(after.q_halt, after.q_continue))
            outputs = outputs._replace(target_q_continue=mx.stop_gradient(mx.sigmoid(value)))
        return carry, outputs

    def __call__(
        self, carry: Carry, batch: Batch, min_steps: Optional[mx.array] = None
    ) -> Tuple[Carry, Outputs]:
        """Take one supervision step: refill, reason, halt.

        Args:
            carry: from :meth:`initial_carry` or the step before.
            batch: incoming puzzles, used by the rows that have halted.
            min_steps: exploration in training; None explores nowhere.

        Returns:
            The new carry and the step's outputs.

        Raises:
            ValueError: if the batch has a token or an identifier that the model does not know; a
                step inside ``mx.compile`` cannot look, and what it gives is then undefined.
        """
        check_batch(batch, self.spec, self.config.puzzle_emb_ndim > 0)
        carry = self.begin(carry, batch)
        return self.step(carry, self.puzzle_rows(carry), min_steps)

    # Weights apart from the puzzle table -------------------------------------------------------

    def weights(self) -> Tree:
        """Give the tree of all arrays but the puzzle table: trained weights and initial states."""
        tree = dict(self.parameters())
        tree.pop("puzzle_emb", None)
        return tree

    def trained_weights(self) -> Tree:
        """Give the tree of the weights that AdamATan2 trains and the EMA averages."""
        tree = dict(self.trainable_parameters())
        tree.pop("puzzle_emb", None)
        return tree

    def block_matrices(self) -> Set[str]:
        """Name the trained matrices of the blocks, dotted as in :meth:`trained_weights`.

        An optimiser for matrices (Muon) takes these, and another takes the rest: embeddings, heads,
        biases. A model that names none is trained by the other alone.
        """
        return set()

    @contextmanager
    def using(self, *trees: Tree) -> Iterator["RecursiveModel"]:
        """Compute with other weights inside a ``with`` block, and restore the model's own after.

        This is how traced arrays enter a compiled function without being left behind in the model.
        """
        own = self.weights()
        try:
            for tree in trees:
                self.update(tree)
            yield self
        finally:
            self.update(own)


def named_arrays(tree: Any) -> List[Tuple[str, mx.array]]:
    """Flatten a tree of arrays, lists in it included, to dotted names and arrays."""
    flat: Any = tree_flatten(tree)
    return list(flat)


def embed_inputs(
    tokens: mx.array, rows: Optional[mx.array], positions: int, table: Optional[mx.array]
) -> mx.array:
    """Put the puzzle vector before the token embeddings, add positions, scale by sqrt(D).

    Args:
        tokens: (B, S, D) embedded tokens in ``forward_dtype``.
        rows: (B, puzzle_emb_ndim) puzzle vectors, or None.
        positions: P; the vector is padded with zeros to P * D and cut into P positions.
        table: (T, D) learned positions in ``forward_dtype``, or None.

    Returns:
        (B, T, D), rounded after each operation as in the reference.
    """
    count, _, size = tokens.shape
    embedding = tokens
    if rows is not None:
        padding = positions * size - rows.shape[-1]
        vector = mx.pad(rows.astype(tokens.dtype), [(0, 0), (0, padding)])
        embedding = mx.concatenate([vector.reshape(count, positions, size), tokens], axis=1)
    if table is not None:
        embedding = scaled(embedding + table, 0.707106781)
    return scaled(embedding, size**0.5)


def register_model(name: str, config_class: Type[ModelConfig]) -> Callable[[Any], Any]:
    """Register a model class under a name of ``model.name``; use as a decorator.

    Args:
        name: what a configuration says.
        config_class: dataclass of the ``model`` section.
    """
    return MODELS.register(name, config_class)


def build_model(config: ModelConfig, spec: TaskSpec, seed: int = 0) -> RecursiveModel:
    """Make the model that a configuration names.

    Args:
        config: the ``model`` section; its class decides nothing, its ``name`` does.
        spec: the task's dimensions.
        seed: of the initial weights.

    Raises:
        ConfigError: if no model has that name.
        TRMError: in a process that was forked from one that had computed.
    """
    refuse_after_fork()
    model: RecursiveModel = MODELS.get(config.name).cls(config, spec, seed=seed)
    return model
