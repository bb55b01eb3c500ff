"""How fast a step could be: its operations and bytes, and the floors that a device sets.

Operations are those of matrix products, counted from the model's shapes: what any implementation of
the same mathematics has to do. Bytes are a lower bound, said below; real programs move several
times as much.

Letters: B batch, T positions (puzzle positions and cells), D hidden, S cells, V vocabulary,
I inner size of a SwiGLU, h heads.
"""

from typing import Any, Dict

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


def positions(job: Dict[str, Any]) -> int:
    """Give T."""
    model = job["model"]
    own = model["puzzle_emb_len"] or -(-model["puzzle_emb_ndim"] // model["hidden_size"])
    return int(own + job["seq_len"])


def block_flops(job: Dict[str, Any]) -> int:
    """Count the operations of a block, forward, over the batch."""
    model, count = job["model"], job["batch"]
    D, T = model["hidden_size"], positions(job)
    # gate and up and down: 2 * (2 * width * I + I * width) for each vector
    total = 6 * count * T * D * inner_size(D, model["expansion"])
    if model["mlp_t"]:
        return total + 6 * count * D * T * inner_size(T, model["expansion"])
    # queries, keys and values, and the way out; scores, and the values they weigh
    return total + 2 * count * T * D * 4 * D + 4 * count * T * T * D


def head_flops(job: Dict[str, Any]) -> int:
    """Count the operations of the logits and of the two Q values, forward."""
    model, count = job["model"], job["batch"]
    return 2 * count * model["hidden_size"] * (job["seq_len"] * job["vocab_size"] + 2)


def step_flops(job: Dict[str, Any], training: bool) -> int:
    """Count the operations of a supervision step.

    Args:
        job: from benchmarks/sizes.py, of a ``trm`` model.
        training: with the gradient of the last H cycle, twice its forward operations.
    """
    model = job["model"]
    level = model["L_layers"] * block_flops(job)
    calls = model["L_cycles"] + 1
    total = model["H_cycles"] * calls * level + head_flops(job)
    if training:
        total += 2 * (calls * level + head_flops(job))
    return int(total)


def block_weights(job: Dict[str, Any]) -> int:
    """Count a block's weights."""
    model = job["model"]
    D, T = model["hidden_size"], positions(job)
    mixer = 3 * T * inner_size(T, model["expansion"]) if model["mlp_t"] else 4 * D * D
    return int(3 * D * inner_size(D, model["expansion"]) + mixer)


def step_bytes(job: Dict[str, Any], training: bool) -> int:
    """Give a lower bound of the bytes that a step moves; :data:`ASSUMPTION` says which.

    Args:
        job: from benchmarks/sizes.py.
        training: with gradient and update.
    """
    model, element = job["model"], BYTES[job["dtype"]]
    weights = block_weights(job)
    state = job["batch"] * positions(job) * model["hidden_size"]
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
