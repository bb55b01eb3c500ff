"""Estimates the memory that a row of the batch takes on a Mac's GPU, on any machine without one.

MLX's CPU takes the branches of Metal (tests/helpers/metal.py) and waits for each few operations, so
that it holds what has to be there, and runs ahead as little as it can. MLX's RMS norm and its fused
attention, each one kernel on Metal and several operations on the CPU, and its products, which take
the time, are stood in for by operations that read and write as much; numbers mean nothing then. The
peak of more rows less that of fewer, divided by their difference, is a row's. It is an estimate:
not yet run on Metal.

    python benchmarks/metal_memory.py                          # minutes, and a line for each case
    PYTHONPATH=OLDER_CHECKOUT python benchmarks/metal_memory.py
"""

import argparse
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Iterator, List, Tuple

if "metal" not in sys.modules:  # the tests' emulation
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import mlx_trm as trm  # isort: skip  # before MLX, so that it can load a fast BLAS on Linux
import mlx.core as mx
import pytest
from metal import allocated_bytes, emulated_metal
from mlx.utils import tree_unflatten

from mlx_trm.config.loading import load_config
from mlx_trm.inference.step import EvaluationStep
from mlx_trm.models import named_arrays
from mlx_trm.models.carry import random_batch
from mlx_trm.models.losses import act_loss

CASES = {
    "mlp": ("sudoku.yaml", 81, 11),
    "attention": ("sudoku_att.yaml", 81, 11),
    "maze": ("maze.yaml", 900, 6),
}


def product(left: mx.array, right: mx.array) -> mx.array:
    """Write an array of the size of a product, after having read both."""
    batch = left.shape[:-2] if left.ndim >= right.ndim else right.shape[:-2]
    shape = (*batch, left.shape[-2], right.shape[-1])
    return mx.depends([mx.contiguous(mx.broadcast_to(left[..., :1], shape))], [right])[0]


differentiable_product = mx.custom_function(product)


@differentiable_product.vjp
def _(primals: Any, d_out: mx.array, _out: mx.array) -> Tuple[mx.array, mx.array]:
    left, right = primals
    return product(d_out, right.swapaxes(-1, -2)), product(left.swapaxes(-1, -2), d_out)


def multiply(left: mx.array, right: mx.array) -> mx.array:
    """Stand in for ``left @ right``; of many rows and one matrix as one product, as MLX does."""
    if left.ndim > right.ndim:
        rows = differentiable_product(left.reshape(-1, left.shape[-1]), right)
        return rows.reshape(*left.shape[:-1], right.shape[-1])
    result: mx.array = differentiable_product(left, right)
    return result


@mx.custom_function
def norm(x: mx.array) -> mx.array:
    """Write an array of the size of a norm."""
    return mx.cummax(x, axis=-1)


@norm.vjp
def _(x: mx.array, d_out: mx.array, out: mx.array) -> mx.array:
    del out
    return mx.cummax(mx.depends([d_out], [x])[0], axis=-1)


@contextmanager
def stand_ins(training: bool) -> Iterator[None]:
    """Put operations that only read and write in the place of MLX's own, in this block.

    Args:
        training: MLX makes all scores while it differentiates, unless it is told not to.
    """

    def attention(
        query: mx.array, key: mx.array, value: mx.array, scale: float, force_fused: bool = False
    ) -> mx.array:
        if training and not force_fused:
            scores = (query * mx.array(scale, query.dtype)) @ key.swapaxes(-1, -2)
            return mx.softmax(scores, axis=-1, precise=True) @ value
        return mx.depends([mx.cummax(query, axis=-1)], [key, value])[0]

    with pytest.MonkeyPatch.context() as patch:
        # Of a few heads: as with enough rows, one more row brings no more scores at a time.
        if find_spec("mlx_trm.nn.mixing") is not None:  # an older checkout has none
            patch.setattr("mlx_trm.nn.mixing.PART_BYTES", 16 << 20)
        patch.setattr(mx.array, "__matmul__", multiply)
        patch.setattr(mx, "addmm", lambda c, a, b: mx.depends([product(a, b)], [c])[0])
        patch.setattr(mx.fast, "rms_norm", lambda x, weight, eps: norm(x))
        patch.setattr(mx.fast, "scaled_dot_product_attention", attention)
        yield


def peak(name: str, training: bool, rows: int, cycles: int, again: bool = False) -> int:
    """Give the peak bytes of a step of so many rows, weights and carry apart."""
    preset, length, vocabulary = CASES[name]
    settings = [f"model.H_cycles={cycles}", "model.forward_dtype=bfloat16"]
    config = load_config(preset, settings)
    model = trm.build_model(config.model, trm.TaskSpec(vocab_size=vocabulary, seq_len=length))
    batch = random_batch(model.spec, rows)
    carry = model.begin(model.initial_carry(batch), batch)
    vectors, weights = model.puzzle_rows(carry), model.trained_weights()
    mx.eval(carry.pack(), vectors, model.parameters())
    names = [key for key, _ in named_arrays(weights)]

    def differentiated(table_rows: mx.array, *arrays: mx.array) -> Any:
        def loss(found: Any, table_rows: mx.array) -> mx.array:
            with model.using(found):
                left, outputs = model.step(carry, table_rows)
            return act_loss(outputs, carry.current.labels, left.halted, left.steps)[0]

        return mx.grad(loss, (0, 1))(tree_unflatten(list(zip(names, arrays))), table_rows)

    def evaluated(table_rows: mx.array, *arrays: mx.array) -> Any:
        left, outputs = reason(tree_unflatten(list(zip(names, arrays))), carry, table_rows)
        return left.latents, tuple(outputs)

    model.train(training)
    model.recompute(again)
    reason = EvaluationStep(model, True)
    step = mx.compile(differentiated) if training else evaluated
    arrays: List[mx.array] = [vectors, *(array for _, array in named_arrays(weights))]
    return allocated_bytes(step, *arrays)


def main() -> None:
    """Print a row of a table for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", nargs=2, type=int, default=[4, 12], help="fewer and more rows")
    parser.add_argument("--cycles", type=int, default=2, help="H cycles; more take no more memory")
    parser.add_argument("--again", action="store_true",
                        help="training alone, with train.checkpoint_activations")  # fmt: skip
    options = parser.parse_args()
    mx.set_memory_limit(1)
    for name in options.cases:
        for training in (True,) if options.again else (True, False):
            with emulated_metal(), stand_ins(training):
                fewer, more = (
                    peak(name, training, rows, options.cycles, options.again)
                    for rows in options.rows
                )
            row = (more - fewer) / (options.rows[1] - options.rows[0])
            what = "training" if training else "evaluation"
            print(f"| {name} | {what} | {row / 1e6:.1f} MB a row |", flush=True)


if __name__ == "__main__":
    main()
