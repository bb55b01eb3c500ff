"""The state that lives from one supervision step to the next, and the rules that halt a row.

A *supervision step* is one forward pass of the recursion. A row of the batch stays in the carry,
with its own puzzle, until it halts; the next step refills it with a new puzzle. The paper's answer
*y* is ``z_H`` and its latent *z* is ``z_L``; both are entries of ``Carry.latents``.

Shape letters: B batch, S sequence, P puzzle-embedding positions, T = P + S, D hidden, V vocabulary.

Reference: models/recursive_reasoning/trm.py, the ACT wrapper.
"""

from contextvars import ContextVar
from typing import ContextManager, Dict, List, NamedTuple, Optional, Sequence, Tuple

import mlx.core as mx
import numpy as np

from mlx_trm.config.sections import TaskSpec
from mlx_trm.nn.functional import set_within
from mlx_trm.nn.init import trunc_normal

IGNORE_LABEL_ID = -100

# The row keys of the step that is being computed; each thread has its own.
_NOISE_KEYS: ContextVar[Optional[mx.array]] = ContextVar("noise keys", default=None)


class Batch(NamedTuple):
    """Puzzles as the model sees them; every array is int32.

    Attributes:
        inputs: (B, S) tokens of the puzzle.
        labels: (B, S) tokens of the solution; IGNORE_LABEL_ID marks cells that do not count.
        puzzle_identifiers: (B,) rows of the puzzle table.
    """

    inputs: mx.array
    labels: mx.array
    puzzle_identifiers: mx.array


class SentBatch(NamedTuple):
    """A batch on its way from the host, its numbers in one array.

    For each array of the host MLX may take memory that it had on a GPU, and then moves that first,
    with a copy that may hold up the step being computed (some 0.3 ms). Sent as one array, 768
    Sudoku with attention train 1 % faster, small batches as fast as before or a little faster.

    Attributes:
        numbers: (B * (2 * S + 1),) int32: inputs, labels, puzzle identifiers.
        rows: B.
    """

    numbers: mx.array
    rows: int

    @classmethod
    def send(cls, inputs: np.ndarray, labels: np.ndarray, identifiers: np.ndarray) -> "SentBatch":
        """Send arrays as of :class:`Batch`; any thread may."""
        parts = (inputs.ravel(), labels.ravel(), identifiers)
        return cls(mx.array(np.concatenate(parts, dtype=np.int32)), len(identifiers))

    def batch(self) -> Batch:
        """Give the batch; by the thread that computes with it."""
        cells = (self.numbers.size - self.rows) // 2
        inputs, labels, identifiers = mx.split(self.numbers, [cells, 2 * cells])
        return Batch(inputs.reshape(self.rows, -1), labels.reshape(self.rows, -1), identifiers)


def check_batch(batch: Batch, spec: TaskSpec, has_table: bool) -> None:
    """Refuse a batch whose numbers are not the model's: MLX would read memory that is not its own.

    Args:
        batch: read on the host, unless it is being traced.
        spec: the model's dimensions.
        has_table: whether it has a puzzle table, of which identifiers are rows.

    Raises:
        ValueError: naming the array and the number.
    """
    try:
        inputs, labels, identifiers = (np.array(part) for part in batch)
    except (RuntimeError, ValueError):  # inside mx.compile there are no numbers to look at
        return
    rows = spec.num_puzzle_identifiers if has_table else np.iinfo(np.int32).max
    for name, values, limit in (
        ("inputs", inputs, spec.vocab_size),
        ("labels", labels[labels != IGNORE_LABEL_ID], spec.vocab_size),
        ("puzzle_identifiers", identifiers, rows),
    ):
        bad = values[(values < 0) | (values >= limit)]
        if bad.size:
            raise ValueError(f"batch.{name} has {bad[0]}, the model knows 0 to {limit - 1}")


class Outputs(NamedTuple):
    """What one supervision step says.

    Attributes:
        logits: (B, S, V) in ``forward_dtype``.
        q_halt: (B,) float32 logit of "the answer is right".
        q_continue: (B,) float32 logit of the value of going on (unused by default).
        target_q_continue: (B,) float32 in [0, 1], or None where the model has no continue target.
    """

    logits: mx.array
    q_halt: mx.array
    q_continue: mx.array
    target_q_continue: Optional[mx.array] = None


class Carry(NamedTuple):
    """The state between supervision steps, one row per puzzle.

    ``mx.compile`` takes plain tuples only: send :meth:`pack` across and :meth:`unpack` inside.

    Attributes:
        latents: each (B, T, D) in ``forward_dtype``; for TRM ``(z_H, z_L)``.
        steps: (B,) int32, supervision steps this row's puzzle has had.
        halted: (B,) bool, whether the row is to be refilled by the next step.
        current: the puzzle each row is working on.
    """

    latents: Tuple[mx.array, ...]
    steps: mx.array
    halted: mx.array
    current: Batch

    @property
    def extent(self) -> Tuple[int, int]:
        """B, and how many numbers a latent has; they decide how a step is shared among cores."""
        return self.steps.shape[0], self.latents[0].size if self.latents else 0

    def pack(self) -> Tuple:
        """Give the carry as nested plain tuples."""
        return (tuple(self.latents), self.steps, self.halted, tuple(self.current))

    @classmethod
    def unpack(cls, packed: Sequence) -> "Carry":
        """Rebuild a carry from :meth:`pack`'s tuples."""
        latents, steps, halted, current = packed
        return cls(tuple(latents), steps, halted, Batch(*current))

    def named(self) -> Dict[str, mx.array]:
        """Give the arrays by name: ``latents.0``, ..., and the other fields' own names."""
        latents = {f"latents.{i}": latent for i, latent in enumerate(self.latents)}
        return {
            **latents,
            "steps": self.steps,
            "halted": self.halted,
            **self.current._asdict(),
        }

    @classmethod
    def from_named(cls, arrays: Dict[str, mx.array]) -> "Carry":
        """Rebuild a carry from :meth:`named`'s arrays."""
        count = sum(name.startswith("latents.") for name in arrays)
        return cls(
            tuple(arrays[f"latents.{i}"] for i in range(count)),
            arrays["steps"],
            arrays["halted"],
            Batch(*(arrays[name] for name in Batch._fields)),
        )


def random_batch(spec: TaskSpec, size: int, seed: int = 0) -> Batch:
    """Make a batch of random tokens, for shape checks and benchmarks.

    Args:
        spec: vocabulary and sequence length; tokens are drawn from 1..V-1 (0 is padding).
        size: B, the number of rows.
        seed: decides every token.

    Returns:
        A Batch of int32 arrays: (B, S), (B, S) and (B,).
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    keys = mx.random.split(mx.random.key(seed), 3)
    shape = (size, spec.seq_len)
    return Batch(
        mx.random.randint(1, spec.vocab_size, shape, key=keys[0]).astype(mx.int32),
        mx.random.randint(1, spec.vocab_size, shape, key=keys[1]).astype(mx.int32),
        mx.random.randint(0, spec.num_puzzle_identifiers, (size,), key=keys[2]).astype(mx.int32),
    )


def empty_carry(batch: Batch, latent_shape: Tuple[int, int], count: int, dtype: mx.Dtype) -> Carry:
    """Make the carry before the first step: every row is halted, so the first step refills it.

    Args:
        batch: gives B and the shapes of the data.
        latent_shape: (T, D).
        count: how many latents the model has.
        dtype: their ``forward_dtype``.
    """
    rows = batch.inputs.shape[0]
    return Carry(
        latents=tuple(mx.zeros((rows, *latent_shape), dtype=dtype) for _ in range(count)),
        steps=mx.zeros((rows,), dtype=mx.int32),
        halted=mx.ones((rows,), dtype=mx.bool_),
        current=Batch(*(mx.zeros_like(part) for part in batch)),
    )


def refill(carry: Carry, batch: Batch, initial: Sequence[mx.array]) -> Carry:
    """Give halted rows the incoming puzzle and fresh latents; other rows keep theirs.

    Args:
        carry: the carry that entered the step.
        batch: incoming puzzles; rows whose carry has not halted are not used.
        initial: the latents' initial states, each (D,), or (B, T, D) where rows have their own.
    """
    halted = carry.halted
    return Carry(
        latents=tuple(
            mx.where(halted[:, None, None], start.astype(latent.dtype), latent)
            for start, latent in zip(initial, carry.latents)
        ),
        steps=mx.where(halted, 0, carry.steps),
        halted=halted,
        current=Batch(
            mx.where(halted[:, None], batch.inputs, carry.current.inputs),
            mx.where(halted[:, None], batch.labels, carry.current.labels),
            mx.where(halted, batch.puzzle_identifiers, carry.current.puzzle_identifiers),
        ),
    )


def exploration_minimum(uniform: mx.array, randint: mx.array, probability: float) -> mx.array:
    """Turn exploration draws into the least number of steps each row must take.

    Args:
        uniform: (B,) float in [0, 1).
        randint: (B,) integers in 2..halt_max_steps, both ends included.
        probability: ``halt_exploration_prob``.

    Returns:
        (B,) int32: ``randint`` where ``uniform < probability``, else 0.
    """
    return mx.where(uniform < probability, randint, 0).astype(mx.int32)


def draw_exploration(
    seed: int, step: int, rows: int, probability: float, halt_max_steps: int
) -> mx.array:
    """Draw each row's least number of steps; the seed and the step alone decide.

    Args:
        seed: of the run.
        step: supervision step, from 1.
        rows: B.
        probability: ``halt_exploration_prob``.
        halt_max_steps: the most steps a row may take.

    Returns:
        (B,) int32.
    """
    if halt_max_steps < 2 or probability == 0:
        return mx.zeros((rows,), dtype=mx.int32)
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    uniform, steps = rng.random(rows, dtype=np.float32), rng.integers(2, halt_max_steps + 1, rows)
    # As exploration_minimum, but in one array: each takes a GPU's memory 0.2 ms to be written.
    return mx.array(np.where(uniform < np.float32(probability), steps, 0).astype(np.int32))


def late_minimum(rows: int, share: float, halt_max_steps: int, late_steps: int) -> mx.array:
    """Give the steps of the rows that go on after the answer, so that it learns to stay.

    Which rows these are never changes: every so many of the batch. Their lengths differ, so that
    they are not refilled all at once.

    Args:
        rows: B of the whole batch.
        share: of the rows, from 0 to 1.
        halt_max_steps: the most steps of the other rows.
        late_steps: of the longest late row.

    Returns:
        (B,) int32: 0 for rows that may halt, else more than ``halt_max_steps``.
    """
    counts = np.floor(np.arange(1, rows + 1) * share + 1e-9).astype(np.int32)
    late = np.diff(counts, prepend=0) > 0
    lengths = np.linspace(late_steps, halt_max_steps + 1, int(late.sum())).astype(np.int32)
    steps = np.zeros(rows, dtype=np.int32)
    steps[late] = lengths
    return mx.array(steps)


def row_keys(seed: int, step: int, rows: int) -> mx.array:
    """Draw a random key for each row of a batch, for what is random in a step of that row.

    The seed, the step and the row's place in the whole batch alone decide a key: however many
    processes and micro-batches share a batch, the keys of a part are a slice of these.

    Args:
        seed: of the run.
        step: supervision step, from 1.
        rows: B of the whole batch.

    Returns:
        (B, 2) uint32, an MLX key each.
    """
    # The counter of four numbers keeps these draws apart from those of draw_exploration.
    bits = np.random.Philox(key=[seed, step], counter=[0, 0, 0, 1])
    drawn = np.random.Generator(bits).integers(0, 2**32, (rows, 2), dtype=np.uint32)
    return mx.array(drawn)


def with_noise(keys: Optional[mx.array]) -> ContextManager[None]:
    """Let steps in a ``with`` block draw the noise of ``model.noise`` from keys of the rows.

    It holds for the thread that is in the block.

    Args:
        keys: (B, 2) uint32 of :func:`row_keys`, those of the rows that are computed.
    """
    return set_within(_NOISE_KEYS, keys)


def noise_keys() -> Optional[mx.array]:
    """Give the keys of :func:`with_noise`; None outside."""
    return _NOISE_KEYS.get()


def split_keys(keys: mx.array, count: int) -> List[mx.array]:
    """Derive ``count`` independent arrays of row keys from one; all are (B, 2) uint32."""
    derived = mx.vmap(lambda key: mx.random.split(key, count))(keys)
    return [derived[:, number] for number in range(count)]


def draw_normal(keys: mx.array, shape: Tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Draw numbers of deviation 1 from a normal cut off at two deviations, row by row.

    Args:
        keys: (B, 2) uint32; a row's key alone decides its numbers.
        shape: of a row.
        dtype: of the result.

    Returns:
        (B, *shape).
    """
    rows: mx.array = mx.vmap(lambda key: trunc_normal(shape, 1.0, key))(keys)
    return rows.astype(dtype)


def halt(
    steps: mx.array,
    outputs: Outputs,
    halt_max_steps: int,
    training: bool,
    min_steps: Optional[mx.array] = None,
    compare_continue: bool = False,
) -> mx.array:
    """Decide which rows are finished after this step.

    In evaluation every row runs ``halt_max_steps``. In training a row also halts where the model
    believes its answer right, unless exploration asks for more steps.

    Args:
        steps: (B,) int32, the count including this step.
        outputs: this step's outputs.
        halt_max_steps: the most steps a row may take.
        training: whether the model's own belief may halt a row.
        min_steps: (B,) int32 from :func:`exploration_minimum`; None explores nowhere.
        compare_continue: halt where q_halt > q_continue instead of where q_halt > 0.

    Returns:
        (B,) bool.
    """
    halted = steps >= halt_max_steps
    if training and halt_max_steps > 1:
        threshold = outputs.q_continue if compare_continue else 0
        halted = halted | (outputs.q_halt > threshold)
        if min_steps is not None:
            halted = halted & (steps >= min_steps)
    return halted
