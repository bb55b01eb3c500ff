"""Hand-written Metal kernels for what mx.compile cannot make one kernel of. Not yet run on Metal.

They are off unless ``MLX_TRM_METAL_KERNELS=1`` asks for them, until a Mac has measured them. Each
has a plain counterpart in :mod:`mlx_trm.nn.gating` or :mod:`mlx_trm.nn.residual`, rounded at the
same places, which is used everywhere else. Before the first use in a process each is compared with
plain operations; where one fails, or is wrong, all stay off, and a warning says so.

A body is plain arithmetic of one thread: no shared memory, no exchange with other threads, no
pointers, so that Linux's g++ can compile it too (``tests/helpers/metal_shim.py``), behind the
signature that MLX writes. ``T`` is the arrays' dtype; all is computed in float32.

Shape letters: B batch, T positions, D hidden.
"""

import logging
import os
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Optional, Sequence, Tuple

import mlx.core as mx
import numpy as np

from mlx_trm.nn.functional import computes_plainly, rms_norm, set_within, silu
from mlx_trm.system.device import on_metal

LOG = logging.getLogger(__name__)
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
SWITCH = "MLX_TRM_METAL_KERNELS"
_CHOICE: ContextVar[Optional[bool]] = ContextVar("Metal kernels", default=None)
# An array of fewer than eight numbers is in another address space, and MLX before 0.32 mistakes
# such kernels for others. A half has half as many.
_FEWEST_NUMBERS = 16
# Indices are uint. Threads a group: an element each, or a column of T numbers each.
_MOST_NUMBERS = 2**31
_ELEMENTS, _COLUMNS = 256, 64


class Kernel(NamedTuple):
    """What MLX writes a kernel's signature from, and its body."""

    name: str
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]
    body: str
    # Names of template arguments that are true or false, behind T.
    flags: Tuple[str, ...] = ()


# Threads (block, outer): gate and up lie one after the other in blocks of so many numbers.
SWIGLU = Kernel(
    "trm_swiglu",
    ("gate_up",),
    ("h",),
    """
    uint block = threads_per_grid.x;
    uint at = thread_position_in_grid.y * block + thread_position_in_grid.x;
    uint first = at + thread_position_in_grid.y * block;
    float gate = float(gate_up[first]);
    float up = float(gate_up[first + block]);
    T gated = T(gate / (1.0f + metal::precise::exp(-gate)));
    h[at] = T(float(gated) * up);
    """,
)
SWIGLU_GRADIENT = Kernel(
    "trm_swiglu_gradient",
    ("gate_up", "d_h"),
    ("d_gate_up", "h"),
    """
    uint block = threads_per_grid.x;
    uint at = thread_position_in_grid.y * block + thread_position_in_grid.x;
    uint first = at + thread_position_in_grid.y * block;
    float gate = float(gate_up[first]);
    float up = float(gate_up[first + block]);
    float d = float(d_h[at]);
    float divisor = 1.0f + metal::precise::exp(-gate);
    float share = 1.0f / divisor;
    T gated = T(gate / divisor);
    T d_gated = T(d * up);
    d_gate_up[first] = T(float(d_gated) * (share * (1.0f + gate * (1.0f - share))));
    d_gate_up[first + block] = T(d * float(gated));
    h[at] = T(float(gated) * up);
    """,
)
# Threads (D, B): each has the T numbers of a column.
POSITION_NORM = Kernel(
    "trm_position_norm",
    ("x", "y", "eps"),
    ("normed", "total"),
    """
    uint size = threads_per_grid.x;
    uint count = uint(x_shape[1]);
    uint start = thread_position_in_grid.y * count * size + thread_position_in_grid.x;
    float squares = 0.0f;
    for (uint t = 0; t < count; ++t) {
        uint at = start + t * size;
        T sum = T(float(x[at]) + float(y[at]));
        if (KEEP) {
            total[at] = sum;
        }
        squares += float(sum) * float(sum);
    }
    float scale = metal::precise::rsqrt(squares / float(count) + eps[0]);
    for (uint t = 0; t < count; ++t) {
        uint at = start + t * size;
        T sum = T(float(x[at]) + float(y[at]));
        normed[at] = T(float(sum) * scale);
    }
    """,
    ("KEEP",),
)
POSITION_NORM_GRADIENT = Kernel(
    "trm_position_norm_gradient",
    ("total", "d_normed", "eps"),
    ("d_total",),
    """
    uint size = threads_per_grid.x;
    uint count = uint(total_shape[1]);
    uint start = thread_position_in_grid.y * count * size + thread_position_in_grid.x;
    float squares = 0.0f;
    float products = 0.0f;
    for (uint t = 0; t < count; ++t) {
        float number = float(total[start + t * size]);
        squares += number * number;
        products += number * float(d_normed[start + t * size]);
    }
    float scale = metal::precise::rsqrt(squares / float(count) + eps[0]);
    float pull = products / float(count) * (scale * scale);
    for (uint t = 0; t < count; ++t) {
        uint at = start + t * size;
        d_total[at] = T(scale * (float(d_normed[at]) - float(total[at]) * pull));
    }
    """,
)
KERNELS = (SWIGLU, SWIGLU_GRADIENT, POSITION_NORM, POSITION_NORM_GRADIENT)


def use(choice: Optional[bool]) -> ContextManager[None]:
    """Use these kernels on Metal (True), do not (False), or do what the environment says (None).

    It is used in a ``with`` block and holds for the thread that is in it. True does without
    neither the comparison before the first use, nor a Mac's GPU.
    """
    return set_within(_CHOICE, choice)


def usable(array: mx.array) -> bool:
    """Whether an array goes through these kernels on the default device.

    Args:
        array: the largest that the kernel reads.
    """
    choice = _CHOICE.get()
    wanted = os.environ.get(SWITCH) == "1" if choice is None else choice
    return (
        wanted
        and on_metal()
        and array.dtype in DTYPES
        and _FEWEST_NUMBERS <= array.size < _MOST_NUMBERS
        and not computes_plainly()
        and _are_right()
    )


def swiglu(gate_up: mx.array, axis: int) -> mx.array:
    """silu(gate) * up, halves of ``axis`` (-1 or -2) of an array of one of :data:`DTYPES`."""
    shape, grid = _halved(gate_up.shape, axis)
    return launch(SWIGLU, [gate_up], [shape], grid, _ELEMENTS)[0]


def swiglu_gradient(gate_up: mx.array, d_h: mx.array, axis: int) -> List[mx.array]:
    """Give the gradient of gate_up, and silu(gate) * up, computed again."""
    shape, grid = _halved(gate_up.shape, axis)
    shapes = [tuple(gate_up.shape), shape]
    return launch(SWIGLU_GRADIENT, [gate_up, d_h.astype(gate_up.dtype)], shapes, grid, _ELEMENTS)


def position_norm(x: mx.array, y: mx.array, eps: float, keep_total: bool) -> List[mx.array]:
    """Give rms_norm(x + y) over the positions, and x + y where it is kept.

    Args:
        x: (B, T, D) of one of :data:`DTYPES`; ``y`` likewise.
        eps: added to the mean square.
        keep_total: whether the second result is written; else it is an array of one number.
    """
    count, positions, size = x.shape
    shapes = [(count, positions, size), (count, positions, size) if keep_total else (1,)]
    arrays = [x, y.astype(x.dtype), mx.array([eps], dtype=mx.float32)]
    return launch(POSITION_NORM, arrays, shapes, (size, count, 1), _COLUMNS, [keep_total])


def position_norm_gradient(total: mx.array, d_normed: mx.array, eps: float) -> mx.array:
    """Give the gradient of ``total``, (B, T, D), whose RMS norm over T has ``d_normed``."""
    count, positions, size = total.shape
    arrays = [total, d_normed.astype(total.dtype), mx.array([eps], dtype=mx.float32)]
    shapes = [(count, positions, size)]
    return launch(POSITION_NORM_GRADIENT, arrays, shapes, (size, count, 1), _COLUMNS)[0]


def _halved(shape: Sequence[int], axis: int) -> Tuple[Tuple[int, ...], Tuple[int, int, int]]:
    """Give the shape of a half, and the grid: numbers of a block of gate, and blocks."""
    halved = list(shape)
    halved[axis] //= 2
    count, block = 1, 1
    for place, size in enumerate(halved):
        if place < len(halved) + axis:
            count *= size
        else:
            block *= size
    return tuple(halved), (block, count, 1)


def launch(  # pylint: disable=too-many-arguments,too-many-positional-arguments
    kernel: Kernel,
    arrays: List[mx.array],
    shapes: Sequence[Tuple[int, ...]],
    grid: Tuple[int, int, int],
    together: int,
    flags: Sequence[bool] = (),
) -> List[mx.array]:
    """Run a kernel.

    Args:
        kernel: of :data:`KERNELS`.
        arrays: its inputs; the first has the dtype of the results.
        shapes: of its results.
        grid: threads along each axis.
        together: threads of a group, at most.
        flags: the values of its flags.

    Returns:
        Its results.
    """
    dtype = arrays[0].dtype
    template = [("T", dtype), *zip(kernel.flags, flags)]
    results: List[mx.array] = _built(kernel)(
        inputs=arrays,
        template=template,
        grid=grid,
        threadgroup=(min(together, grid[0]), 1, 1),
        output_shapes=list(shapes),
        output_dtypes=[dtype] * len(shapes),
    )
    return results


@lru_cache(maxsize=None)
def _built(kernel: Kernel) -> Any:
    """Give the function that MLX makes of a body; it compiles a kernel once a process and dtype."""
    return mx.fast.metal_kernel(
        name=kernel.name,
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        source=kernel.body,
    )


# The comparison before the first use --------------------------------------------------------------

# The largest difference that rounding explains, over the largest number of the result.
_ROUNDING: Dict[mx.Dtype, float] = {mx.float32: 2e-6, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}
_ODD = (3, 7, 33)


@lru_cache(maxsize=1)
def _are_right() -> bool:
    """Whether each kernel gives what plain operations give, in this process, on this GPU."""
    wrong = find_wrong()
    if wrong is None:
        return True
    LOG.warning("the kernels of %s are not used on this GPU: %s", SWITCH, wrong)
    return False


def find_wrong() -> Optional[str]:
    """Compare each kernel with plain operations on small arrays of odd sizes.

    Returns:
        Which is wrong or fails, in a line; None where all are right.
    """
    for dtype in DTYPES:
        for name, (kernel, plain, shapes) in _comparisons().items():
            keys = mx.random.split(mx.random.key(7), len(shapes))
            arrays = [(2 * mx.random.normal(s, key=k)).astype(dtype) for s, k in zip(shapes, keys)]
            try:
                have = [array.astype(mx.float32) for array in kernel(*arrays)]
                want = [array.astype(mx.float32) for array in plain(*arrays)]
                mx.eval(have, want)
            except (RuntimeError, ValueError, TypeError, AttributeError) as error:
                lines = str(error).strip().splitlines()
                return f"{name} fails in {dtype}: {lines[0] if lines else type(error).__name__}"
            for one, other in zip(have, want):
                if one.shape != other.shape:
                    return f"{name} has another shape in {dtype}"
                off = float(np.max(np.abs(np.array(one - other))) / np.max(np.abs(np.array(other))))
                if not off <= _ROUNDING[dtype]:  # or is not a number
                    return f"{name} is wrong in {dtype}, by {off:.1e} of its largest number"
    return None


_Results = Sequence[mx.array]
_Comparison = Tuple[Callable[..., _Results], Callable[..., _Results], List[Tuple[int, ...]]]


def _comparisons() -> Dict[str, _Comparison]:
    """Give a kernel's function, plain operations, and the shapes that both take, by name."""
    eps, (count, positions, size) = 1e-5, _ODD

    def gated(gate_up: mx.array, axis: int) -> mx.array:
        gate, up = mx.split(gate_up, 2, axis=axis)
        return silu(gate) * up

    def gated_gradient(gate_up: mx.array, d_h: mx.array, axis: int) -> _Results:
        out, gradient = mx.vjp(lambda array: gated(array, axis), [gate_up], [d_h])
        return [gradient[0], out[0]]

    def norm(x: mx.array, y: mx.array) -> _Results:
        return [rms_norm(x + y, eps, -2), x + y]

    def norm_gradient(total: mx.array, d_normed: mx.array) -> _Results:
        return mx.vjp(lambda array: rms_norm(array, eps, -2), [total], [d_normed])[1]

    found: Dict[str, _Comparison] = {}
    for axis, halves in ((-1, (count, positions, 2 * size)), (-2, (count, 2 * positions, size))):
        found[f"silu(gate) * up over axis {axis}"] = (
            lambda array, axis=axis: [swiglu(array, axis)],
            lambda array, axis=axis: [gated(array, axis)],
            [halves],
        )
        found[f"its gradient over axis {axis}"] = (
            lambda array, d, axis=axis: swiglu_gradient(array, d, axis),
            lambda array, d, axis=axis: gated_gradient(array, d, axis),
            [halves, _ODD],
        )
    for keep in (True, False):
        found["add and norm over positions" + (", kept" if keep else "")] = (
            lambda x, y, keep=keep: position_norm(x, y, eps, keep)[: 1 + keep],
            lambda x, y, keep=keep: norm(x, y)[: 1 + keep],
            [_ODD, _ODD],
        )
    found["the norm's gradient"] = (
        lambda total, d: [position_norm_gradient(total, d, eps)],
        norm_gradient,
        [_ODD, _ODD],
    )
    return found
