"""How much memory a training step takes, before it is tried, and how much there is."""

import logging
import math
from contextlib import contextmanager
from typing import Iterator, Optional, Union

import mlx.core as mx

from mlx_trm.config.sections import TrainConfig
from mlx_trm.errors import ConfigError
from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.models.network import Block, NetworkConfig
from mlx_trm.nn import fused
from mlx_trm.nn.cuda import kernels as cuda
from mlx_trm.nn.cuda import position_mlp as position_kernels
from mlx_trm.nn.cuda.hopper.swiglu_product import swiglu_product_fits
from mlx_trm.nn.layers import SwiGLU
from mlx_trm.system.backend import LARGE_EVALUATION, frees_memory_often, operations_before_freeing
from mlx_trm.system.device import on_cuda, on_gpu, on_metal
from mlx_trm.system.memory import GIB, PROCESS_LIMIT, default_cache, device_memory

# Positions of all rows that keep a Mac's GPU busy; more at once take memory and no less time.
METAL_POSITIONS = 12_000
# What a chain's row takes in a race, in rows of an evaluation step: 2.3 to 2.5 measured on the CPU.
RACING = 2.5
# What a row of an evaluation takes on the CPU, in rows of the estimate: 1.3 to 2.6 measured.
CPU_AHEAD = 2.6
# The share of a device's memory that is planned with.
USABLE = 0.8
LOG = logging.getLogger(__name__)


def estimate_row_bytes(model: RecursiveModel, train: Optional[TrainConfig] = None) -> int:
    """Estimate the bytes one row of the batch adds to a train step; 0 where that is not known.

    Args:
        model: to be trained.
        train: the recipe, of which the largest stage of a curriculum counts, and the race of
            several chains; default: one without either.
    """
    if train is None:
        return _row_bytes(model)
    stages, row = train.stages(), 0
    for stage in stages:
        with model.with_cycles(stage.H_cycles, stage.L_cycles):
            row = max(row, _row_bytes(model))
    row = row if stages else _row_bytes(model)
    if train.chains > 1 and row:
        # All chains think, and only then one of them is differentiated: not both at a time.
        row = max(row, int(train.chains * RACING * _evaluation_row_bytes(model)))
    return row


def _row_bytes(model: RecursiveModel) -> int:
    """Estimate a row of a step of one chain, in the cycles that the model is set to.

    Almost all of it is what is kept for the gradient of the blocks that have one, for TRM those of
    the last H cycle. Where automatic differentiation keeps it, the factors were fitted to peaks
    measured on the CPU in float32 (142 MB a row for the paper's MLP model, about 90 for its
    attention model); test_memory.py and test_variants.py repeat the comparison on small models.
    Where :mod:`mlx_trm.nn.fused` does, its arrays are counted.
    """
    blocks, config = model.differentiated_blocks, model.config
    if not isinstance(config, NetworkConfig):
        return model.row_bytes(training=True)
    if blocks == 0:
        return 0
    width, length = config.hidden_size, model.positions + model.spec.seq_len
    # In units of T * D numbers: what a block keeps, and what its gradient needs besides.
    feature, scores = _expansion(config, width), config.num_heads * length / width
    passing, element = 0.0, float(model.dtype.size)
    if fused.in_use():
        kept, passing = 3.0 + 2.0 * feature, 4.0 * feature
        if not config.attends:
            kept, passing = kept + 2.0, max(passing, 6.0 * _expansion(config, length))
        elif cuda.usable(model.dtype):
            kept += 6.0 if cuda.attention_fits(1, length, config.head_dim) else 8.0
        elif on_metal():  # scores are those of a part, not of a row
            kept += 8.0
        else:
            kept, passing = kept + 6.0 + scores, max(passing, 4.0 * scores)
    else:
        kept = 10.0 + 5.0 * feature
        kept += 5.0 + 1.5 * scores if config.attends else 5.0 * _expansion(config, length)
        if model.dtype != mx.float32:  # silu, RMS norm and their gradients keep float32 arrays
            element = 3.2
    units = kept * blocks + passing
    if any(getattr(module, "recomputed", False) for module in model.modules()):
        # What enters each block, and all of one block, twice with its gradient.
        units = min(units, 2.0 * blocks + 2.0 * kept + passing)
    return int(units * length * width * element)


def estimate_train_bytes(
    model: RecursiveModel, batch_size: int, train: Optional[TrainConfig] = None
) -> int:
    """Estimate the peak bytes of a train step: weights, moments, EMA, gradients and activations."""
    weights = sum(array.nbytes for _, array in named_arrays(model.trained_weights()))
    everything = sum(array.nbytes for _, array in named_arrays(model.parameters()))
    return 10 * weights + everything + batch_size * estimate_row_bytes(model, train)


def rows_that_fit(model: RecursiveModel, train: Optional[TrainConfig] = None) -> Optional[int]:
    """Estimate how many rows can be computed at once; None where it cannot be told."""
    limit, row = device_memory(), estimate_row_bytes(model, train)
    if limit is None or row == 0:
        return None
    return max(1, int((limit * USABLE - estimate_train_bytes(model, 0)) / row))


def choose_micro_batch(
    model: RecursiveModel,
    rows: int,
    setting: Optional[Union[int, str]],
    train: Optional[TrainConfig] = None,
) -> int:
    """Give the rows that are computed at once.

    Args:
        model: to be trained.
        rows: this process's share of a batch.
        setting: ``train.micro_batch_size``; ``auto`` takes what the estimate says will fit, on
            Metal 12,000 positions at most, in parts of about equal size.
        train: the recipe; see :func:`estimate_row_bytes`.

    Raises:
        ConfigError: if that does not fit, naming the override that helps.
    """
    fitting = rows_that_fit(model, train)
    if setting == "auto" and on_metal():
        busy = max(1, METAL_POSITIONS // (model.positions + model.spec.seq_len))
        fitting = busy if fitting is None else min(fitting, busy)
    if setting == "auto":
        return rows if fitting is None else -(-rows // -(-rows // min(rows, fitting)))
    chosen = min(rows, int(setting or rows))
    if fitting is None or chosen <= fitting:
        return chosen
    limit = device_memory() or 0
    need = estimate_train_bytes(model, chosen, train) / GIB
    if need * GIB <= limit:  # in the last fifth of the memory: let it try
        return chosen
    suggested = fitting - fitting % 8 if fitting > 8 else fitting
    key = "micro_batch_size" if setting else "batch_size"
    raise ConfigError(
        f"train.{key}: a batch of {chosen} needs about {need:.0f} GiB and this device has "
        f"{limit / GIB:.0f} GiB; use train.micro_batch_size=auto (or {suggested}) for the same "
        f"training in less memory, or train.batch_size={suggested} or less"
    )


def limit_run_ahead(model: RecursiveModel, rows: int, train: Optional[TrainConfig] = None) -> None:
    """Set MLX's memory limit to what a train step needs. It is done on a GPU only.

    Args:
        model: to be trained.
        rows: computed at once.
        train: the recipe; see :func:`estimate_row_bytes`.
    """
    if (cuda.architecture() is not None or on_metal()) and estimate_row_bytes(model):
        # MLX's GPU backends queue operations, and allocate for them, as long as there is memory: 90
        # GiB were measured on CUDA for a step that needs less than 20. At the limit MLX waits for
        # queued work, which costs next to nothing.
        needed = GIB // 2 + estimate_train_bytes(model, rows, train) + (default_cache() or 0)
        PROCESS_LIMIT.set_capped(max(4 * GIB, needed))


@contextmanager
def limit_evaluation_memory(
    model: RecursiveModel, rows: int, most: Optional[float] = None
) -> Iterator[None]:
    """Set MLX's memory limit to what an evaluation step needs, inside a ``with`` block.

    It is done on a GPU only. Where another thread is in such a block already, its limit stays.

    Args:
        model: to be evaluated.
        rows: in a batch.
        most: ``eval.memory_limit_gb``.
    """
    row = _evaluation_row_bytes(model)
    if not ((on_cuda() or on_metal()) and row):
        yield
        return
    # On Metal the limit is that of the cache, too: beyond it MLX gives freed memory back.
    outside = mx.get_active_memory() + (default_cache() or 0)
    # As in training, it would allocate for operations long before they run: 15 GiB for a step of
    # 768 Sudoku, and no faster for it. With less the GPU waits for memory, the later the more often
    # it is freed: docs/benchmarks has what each limit costs.
    least, share = 3 * GIB // 2, rows * row
    if operations_before_freeing() <= 4 and _writes_little(model):
        # The least has room for what does not grow with the rows: a step's copies of the weights
        # and the workspaces of its products, up to 32 MiB each; fewer at a time if freed often.
        least = GIB // 4
        if frees_memory_often():
            least, share = GIB // 6, share * 4 // 7
    needed = max(least, outside + share)
    if most is not None:
        needed = outside + min(rows * row, int(most * GIB))
    with PROCESS_LIMIT.lower_in_block(needed):
        yield


def count_evaluation_parts(model: RecursiveModel, rows: int, most: Optional[float]) -> int:
    """Give the number of parts in which a batch is evaluated, one after the other.

    Args:
        model: to be evaluated.
        rows: in the batch.
        most: ``eval.memory_limit_gb``; None: one part.

    Raises:
        ConfigError: if it is too little for a row and the states of all.
    """
    if most is None:  # asked at every step
        return 1
    row = _evaluation_row_bytes(model)
    if not row:
        return 1
    # The states of all rows: each about a quarter of what its row takes while it is computed.
    states = rows * row // 4
    fitting = int(most * GIB - states) // row
    if fitting < 1:
        raise ConfigError(
            f"eval.memory_limit_gb: {most:g} GiB are too few for a batch of {rows}; set at least "
            f"{_rounded_up((states + row) / GIB)}"
        )
    return -(-rows // min(rows, fitting))


def _rounded_up(number: float) -> str:
    """Write a number above 0 in two digits that are not less than it, such as 0.013 or 120."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    # The last digits of a float must not make it less again.
    return f"{math.ceil(number / unit + 1e-6) * unit:.3g}"


def cap_evaluation_rows(model: RecursiveModel, rows: int, most: Optional[float] = None) -> int:
    """Give as many rows as an evaluation's batch can have by the estimate, ``rows`` at most.

    Args:
        model: to be evaluated, perhaps while it is being trained.
        rows: that are wanted.
        most: ``eval.memory_limit_gb``, in which the states of all rows have to fit beside one row
            that is computed.
    """
    rows = _cap_states(model, rows, most)
    limit, row = device_memory(), _evaluation_row_bytes(model)
    if not on_gpu():  # where nothing keeps MLX from running ahead
        row = int(CPU_AHEAD * row)
    if limit is None or not row:
        return rows
    fitting = max(1, int((limit * USABLE - estimate_train_bytes(model, 0)) / row))
    if fitting < rows:
        LOG.info(
            "evaluation computes %d rows at once: %d need about %.1f GiB, and this device has %.1f",
            *(fitting, rows, rows * row / GIB, limit / GIB),
        )
    return min(rows, fitting)


def _cap_states(model: RecursiveModel, rows: int, most: Optional[float]) -> int:
    """Give as many rows as count_evaluation_parts takes, 1 at least and ``rows`` at most."""
    if most is None:
        return rows
    row = _evaluation_row_bytes(model)
    if not row:
        return rows
    fitting = max(1, 4 * (int(most * GIB) - row) // row)
    if fitting < rows:
        LOG.info("evaluation takes %d rows of %d: eval.memory_limit_gb", fitting, rows)
    return min(rows, fitting)


def _evaluation_row_bytes(model: RecursiveModel) -> int:
    """Estimate the bytes of a row's arrays that are there at once in an evaluation step."""
    config = model.config
    if not isinstance(config, NetworkConfig):
        return model.row_bytes(training=False)
    width, length = config.hidden_size, model.positions + model.spec.seq_len
    # In units of T * D numbers: states and what is added to them, and a SwiGLU's inner arrays.
    feature, position = _expansion(config, width), 0.0
    if not (config.attends or _position_kernel(config, length, model.dtype)):
        position = _expansion(config, length)
    # On Metal memory is given back when a number of operations is done: those of a block, about.
    inner = feature + position if on_metal() else max(feature, position)
    units = 10.0 + 4.0 * inner
    if config.attends and not (cuda.usable(model.dtype) or on_metal()):
        units += 3.0 * config.num_heads * length / width
    return int(units * length * width * model.dtype.size)


def _writes_little(model: RecursiveModel) -> bool:
    """Whether no operation of a large evaluation step writes gate and up, thanks to kernels."""
    config = model.config
    if not isinstance(config, NetworkConfig) or config.gate_norm or not fused.in_use():
        return False
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    width, length = config.hidden_size, model.positions + model.spec.seq_len
    inner = SwiGLU.inner_size(width, config.expansion, config.swiglu_multiple)
    mixed = config.attends or _position_kernel(config, length, model.dtype)
    fits = mixed and swiglu_product_fits(LARGE_EVALUATION, width, inner, model.dtype)
    return fits and all(block.is_plain() for block in blocks)


def _position_kernel(config: NetworkConfig, length: int, dtype: mx.Dtype) -> bool:
    """Whether the half over positions is one kernel of CUDA's, which never writes gate and up."""
    if config.gate_norm or not cuda.usable(dtype):
        return False
    inner = SwiGLU.inner_size(length, config.expansion, config.swiglu_multiple)
    return position_kernels.position_mlp_fits(1, length, config.hidden_size, inner)


def _expansion(config: NetworkConfig, size: int) -> float:
    return SwiGLU.inner_size(size, config.expansion, config.swiglu_multiple) / size
