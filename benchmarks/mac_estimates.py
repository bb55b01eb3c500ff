"""Prints what a Mac is estimated to do, on any machine: rows that fit, times of a step and a run.

Rows are those of ``models/memory.py``, taking the branches of Metal, in bfloat16. A step takes the
operations of its matrix products (``roofline.py``) over a share of what the GPU is said to do at
most: an estimate, until a Mac has measured it.

    python benchmarks/mac_estimates.py
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import List

if "metal" not in sys.modules:  # the tests' emulation
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import mlx_trm as trm  # isort: skip  # before MLX, so that it can load a fast BLAS on Linux
import pytest
from metal import emulated_metal
from roofline import step_flops

from mlx_trm.config.loading import load_config
from mlx_trm.config.sections import Stage, TaskSpec
from mlx_trm.models import memory

# By preset: words and cells of a puzzle, and puzzles that have a vector of their own.
CASES = {
    "sudoku": TaskSpec(11, 81),
    "sudoku_att": TaskSpec(11, 81),
    "maze": TaskSpec(6, 900),
    "arc1": TaskSpec(12, 900, 876_406),
    "sudoku_symbols": TaskSpec(11, 81),
    "maze_grid": TaskSpec(6, 400),
}
# Trillions of float32 operations a second: Apple's figure for the largest GPU of each M1 and M2;
# of M3 and M4, for which it gives none, cores x 256 x the clock (1.4 and 1.5 GHz).
CHIPS = {
    "M1": 2.6,
    "M1 Max": 10.4,
    "M2": 3.6,
    "M2 Max": 13.6,
    "M3": 3.6,
    "M3 Max": 14.3,
    "M4": 3.8,
    "M4 Max": 15.4,
}
# What an H200 reaches of its own figure in training is 0.41 to 0.50.
SHARE = 0.4
BATCH = 768
RECIPES = ("sudoku_symbols", "maze_grid")
GIBIBYTES = (8, 16, 32, 64, 128)


def usable_share(gibibytes: int) -> float:
    """Give the share of a Mac's memory that macOS lets its GPU use."""
    return 0.75 if gibibytes >= 64 else 2 / 3


def count_rows(preset: str, gibibytes: int, training: bool) -> int:
    """Give the rows of a preset that fit a Mac's memory, by the estimate."""
    config = load_config(f"{preset}.yaml", ["model.forward_dtype=bfloat16"])
    model = trm.build_model(config.model, CASES[preset])
    room = int(usable_share(gibibytes) * gibibytes * 2**30)
    with pytest.MonkeyPatch.context() as patch, emulated_metal():
        patch.setattr(memory, "device_memory", lambda: room)
        if training:
            return memory.rows_that_fit(model, config.train) or 0
        return memory.cap_evaluation_rows(model, 10**6)


def count_operations(preset: str, training: bool) -> int:
    """Give the operations of a row's supervision step."""
    model, spec = asdict(load_config(f"{preset}.yaml").model), CASES[preset]
    job = {"model": model, "batch": 1, "seq_len": spec.seq_len, "vocab_size": spec.vocab_size}
    return step_flops(job, training)


def count_run(preset: str) -> int:
    """Give the operations of a recipe's run: its steps in the stages of its curriculum."""
    config, spec = load_config(f"{preset}.yaml"), CASES[preset]
    model, train = asdict(config.model), config.train
    stages = train.stages() or [Stage(0.0, model["H_cycles"], model["L_cycles"])]
    ends = [stage.start for stage in stages[1:]] + [1.0]
    total = 0.0
    for stage, end in zip(stages, ends):
        model.update(H_cycles=stage.H_cycles, L_cycles=stage.L_cycles)
        job = {"model": model, "batch": train.batch_size, "seq_len": spec.seq_len,
               "vocab_size": spec.vocab_size}  # fmt: skip
        total += (end - stage.start) * (train.max_steps or 0) * step_flops(job, True)
    return round(total)


def print_table(header: List[str], rows: List[List[str]]) -> None:
    """Print a table of Markdown."""
    for line in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(line) + " |")
    print()


def main() -> None:
    """Print all tables, and the operations that the times are made of."""
    wanted = [(preset, True) for preset in CASES] + [("sudoku", False), ("maze", False)]
    titles = [f"`{p}`, {'training' if training else 'evaluation'}" for p, training in wanted]
    print_table(
        ["memory", *titles],
        [[f"{size} GB", *(f"{count_rows(p, size, t):,}" for p, t in wanted)] for size in GIBIBYTES],
    )
    operations = [count_operations(preset, training) for preset, training in wanted]
    rows = [["GFLOP a row", *(f"{each / 1e9:.1f}" for each in operations)]]
    for chip, trillions in CHIPS.items():
        rate = SHARE * trillions * 1e12
        rows.append([f"{chip}, {trillions:g}", *(f"{BATCH * o / rate:.1f} s" for o in operations)])
    print_table([f"chip, TFLOPS; {BATCH} rows", *titles], rows)
    header, *lines = ["recipe", "PFLOP", *CHIPS], *map(run_row, RECIPES)
    print_table(header, lines)


def run_row(preset: str) -> List[str]:
    """Give a recipe's row: its operations, and hours on each chip."""
    count = count_run(preset)
    hours = [f"{count / (SHARE * trillions * 1e12) / 3600:.1f} h" for trillions in CHIPS.values()]
    return [f"`{preset}.yaml`", f"{count / 1e15:.0f}", *hours]


if __name__ == "__main__":
    main()
