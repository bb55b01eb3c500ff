"""How fast a step could be: its operations and bytes, and the floors that a device sets.

Operations are those of matrix products, counted from the model's shapes: what any implementation of
the same mathematics has to do. Bytes are a lower bound, said below; real programs move several
times as much.

Letters: B batch, T positions (puzzle positions and cells), D hidden, S cells, V vocabulary,
I inner size of a SwiGLU, h heads.
"""

from math import isqrt
from typing import Any, Callable, Dict

from mlx_trm.errors import ConfigError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ASSUMPTION = (
    "lower bound: each block reads and writes its state once, and reads its weights once; a block "
    "with a gradient does so once more backwards, reads what it had read and writes gradients of "
    "its weights; each update reads and writes weights, moments and average and reads gradients, "
    "in float32"
)


def inner_size(width: int, expansion: float, multiple: int = 256) -> int:
    """Give I of a SwiGLU over ``width`` numbers."""
    return -(-round(expansion * width * 2 / 3) // multiple) * multiple


class TRMShape:
    """The sizes of a ``trm`` model's work; those of others are subclasses.

    Attributes:
        rows: B.
        cells: S.
        words: V.
        positions: T.
        width: D.
    """

    def __init__(self, job: Dict[str, Any]) -> None:
        """Read a job of benchmarks/sizes.py."""
        self.model = job["model"]
        self.rows, self.cells, self.words = job["batch"], job["seq_len"], job["vocab_size"]
        self.width = self.read_width()
        self.positions = self.read_own_positions() + self.cells

    def read_width(self) -> int:
        """Give D."""
        return int(self.model["hidden_size"])

    def read_own_positions(self) -> int:
        """Count the positions before the cells: of the puzzle's vector, and registers."""
        model = self.model
        vector = model["puzzle_emb_ndim"]
        vector = self.width if vector is None else vector
        own = model["puzzle_emb_len"] or -(-vector // self.width)
        return int(own + model.get("register_tokens", 0))

    def inner(self, width: int) -> int:
        """Give I of a SwiGLU over ``width`` numbers."""
        multiple = self.model.get("swiglu_multiple", 256)
        return inner_size(width, self.model["expansion"], multiple)

    def block_flops(self) -> int:
        """Count the operations of a block, forward, over the batch."""
        count, D, T = self.rows, self.width, self.positions
        # gate and up and down: 2 * (2 * width * I + I * width) for each vector
        total = 6 * count * T * D * self.inner(D)
        if self.model["mlp_t"]:
            return total + 6 * count * D * T * self.inner(T)
        # queries, keys and values, and the way out; scores, and the values they weigh
        return total + 2 * count * T * D * 4 * D + 4 * count * T * T * D

    def head_flops(self) -> int:
        """Count the operations of the logits and of the Q values, forward."""
        return 2 * self.rows * self.width * (self.cells * self.words + 2)

    def block_weights(self) -> int:
        """Count a block's weights."""
        D, T = self.width, self.positions
        mixer = 3 * T * self.inner(T) if self.model["mlp_t"] else 4 * D * D
        return int(3 * D * self.inner(D) + mixer)


class SymbolsShape(TRMShape):
    """Of ``trm_symbols``: a field of C numbers for each of n symbols, all by the same weights."""

    def read_width(self) -> int:
        """Give D = n C; n is all words but padding and blank, unless it is said."""
        self.symbols = self.model["symbols"] or self.words - 2
        return int(self.symbols * self.model["symbol_size"])

    def read_own_positions(self) -> int:
        """Count the registers."""
        return int(self.model["register_tokens"])

    def block_flops(self) -> int:
        """Count both SwiGLUs, and the mix of the mean over the fields."""
        count, D, T, C = self.rows, self.width, self.positions, self.model["symbol_size"]
        tokens = 6 * count * D * T * self.model["token_inner"]
        fields = 6 * count * T * D * self.model["inner"]
        return int(tokens + fields + 2 * count * T * C * C)

    def head_flops(self) -> int:
        """Count a logit from each field, those of other words from the mean, and Q."""
        C, others = self.model["symbol_size"], self.words - self.symbols
        return int(2 * self.rows * (self.cells * (self.width + C * others) + C))

    def block_weights(self) -> int:
        """Count a block's weights."""
        C, model = self.model["symbol_size"], self.model
        return int(3 * self.positions * model["token_inner"] + 3 * C * model["inner"] + C * C)


class GridShape(TRMShape):
    """Of ``trm_grid``: gate and up of a cell see the 3x3 cells around it that are on the grid."""

    def read_own_positions(self) -> int:
        """There are none."""
        return 0

    def block_flops(self) -> int:
        """Count the products of pairs of neighbours, and those that lead back."""
        columns = self.model["columns"] or isqrt(self.cells)
        pairs = (3 * (self.cells // columns) - 2) * (3 * columns - 2)
        inner = self.width * self.model["inner"]
        return int(2 * self.rows * inner * (2 * pairs + self.cells))

    def head_flops(self) -> int:
        """Count the logits, and Q from a mean and a largest number."""
        return 2 * self.rows * self.width * (self.cells * self.words + 2)

    def block_weights(self) -> int:
        """Count a block's weights."""
        return int((2 * 9 + 1) * self.width * self.model["inner"])


SHAPES: Dict[str, Callable[[Dict[str, Any]], TRMShape]] = {
    "trm": TRMShape,
    "trm_symbols": SymbolsShape,
    "trm_grid": GridShape,
}


def shape_of(job: Dict[str, Any]) -> TRMShape:
    """Give the sizes of a job's work.

    Raises:
        ConfigError: if its model is none that is counted here.
    """
    name = job["model"].get("name", "trm")
    if name not in SHAPES:
        raise ConfigError(
            f"model {name}: its operations are not counted; those of {', '.join(SHAPES)} are"
        )
    return SHAPES[name](job)


def step_flops(job: Dict[str, Any], training: bool) -> int:
    """Count the operations of a supervision step.

    Args:
        job: from benchmarks/sizes.py.
        training: with the gradient of the last H cycle, twice its forward operations.

    Raises:
        ConfigError: if its model is none that is counted here.
    """
    model, shape = job["model"], shape_of(job)
    level, heads = model["L_layers"] * shape.block_flops(), shape.head_flops()
    calls = model["L_cycles"] + 1
    total = model["H_cycles"] * calls * level + heads
    if training:
        total += 2 * (calls * level + heads)
    return int(total)


def block_weights(job: Dict[str, Any]) -> int:
    """Count a block's weights."""
    return shape_of(job).block_weights()


def step_bytes(job: Dict[str, Any], training: bool) -> int:
    """Give a lower bound of the bytes that a step moves; :data:`ASSUMPTION` says which.

    Args:
        job: from benchmarks/sizes.py.
        training: with gradient and update.
    """
    model, shape, element = job["model"], shape_of(job), BYTES[job["dtype"]]
    weights = shape.block_weights()
    state = shape.rows * shape.positions * shape.width
    calls = model["L_layers"] * (model["L_cycles"] + 1)
    once = (2 * state + weights) * element
    total = model["H_cycles"] * calls * once
    if training:
        total += calls * (once + (state + weights) * element)
        every = model["L_layers"] * weights
        averaged = 2 if job["recipe"]["ema_rate"] else 0
        total += (2 + 4 + 1 + averaged) * 4 * every
    return int(total)


def note(job: Dict[str, Any], training: bool, rates: Dict[str, float], seconds: float) -> Dict:
    """Compare a measured step with its floors.

    Args:
        job: what was measured.
        training: a train step, else an evaluation step.
        rates: ``flops`` and ``bandwidth`` of the device, measured.
        seconds: of one step.

    Returns:
        ``flops``, ``bytes``; ``compute_floor`` and ``memory_floor`` in seconds; ``bound``, which of
        them is higher; ``share`` of it that was reached, 1 at best; ``assumption``.
    """
    flops, moved = step_flops(job, training), step_bytes(job, training)
    compute, memory = flops / rates["flops"], moved / rates["bandwidth"]
    return {
        "flops": flops,
        "bytes": moved,
        "compute_floor": compute,
        "memory_floor": memory,
        "bound": "compute" if compute >= memory else "memory",
        "share": max(compute, memory) / seconds,
        "matrix_rate": rates["flops"],
        "bandwidth": rates["bandwidth"],
        "assumption": ASSUMPTION,
    }
