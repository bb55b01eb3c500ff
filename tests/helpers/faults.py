"""Faults made by hand in the parts that decide what is learnt, and the tests that catch them.

    python tests/helpers/faults.py
    python tests/helpers/faults.py --only loss halting

Each fault is put into a copy of the package; the tests of its place run there until one fails.
One that nobody notices is a gap in the tests. ``tests/policy/test_faults.py`` runs all (slow).
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent))
from child_processes import run  # noqa: E402
from paths import ROOT  # noqa: E402

AREAS = ("model", "loss", "optimiser", "sampler", "halting", "scorer")


class Fault(NamedTuple):
    """A change that makes the package wrong.

    Attributes:
        area: one of ``AREAS``.
        what: what is wrong then.
        file: in the package.
        right: a text that stands there once.
        wrong: what is put in its place.
        tests: files of tests of which one has to fail.
    """

    area: str
    what: str
    file: str
    right: str
    wrong: str
    tests: str


FAULTS = [
    Fault(
        "model", "the latent is improved without the puzzle", "models/network.py",
        "question = z_H + x", "question = z_H",
        "tests/unit/models/test_trm.py",
    ),
    Fault(
        "model", "the gradient goes through every cycle", "models/network.py",
        "z_H, z_L = mx.stop_gradient(z_H), mx.stop_gradient(z_L)\n", "pass\n",
        "tests/unit/models/test_trm.py",
    ),
    Fault(
        "model", "one update of the latent too few", "models/network.py",
        "in reversed(range(cycles[1])):", "in reversed(range(max(1, cycles[1] - 1))):",
        "tests/unit/models/test_trm.py",
    ),
    Fault(
        "model", "the norm divides by one too few", "nn/functional.py",
        "return x * (1.0 / size)", "return x * (1.0 / (size - 1))",
        "tests/unit/nn/test_layers.py",
    ),
    Fault(
        "loss", "cells that are not scored count", "models/losses.py",
        "return mx.where(valid, -log_probability, 0.0)", "return -log_probability",
        "tests/unit/models/test_losses.py",
    ),
    Fault(
        "loss", "a row's loss is a sum, not a mean", "models/losses.py",
        "return mx.sum(of_cells, axis=-1) / mx.maximum(counts, 1).astype(mx.float32)",
        "return mx.sum(of_cells, axis=-1)",
        "tests/unit/models/test_losses.py",
    ),
    Fault(
        "loss", "the halting loss has the wrong sign of its target", "models/losses.py",
        "binary_cross_entropy(outputs.q_halt, exact.astype(mx.float32))",
        "binary_cross_entropy(outputs.q_halt, 1.0 - exact.astype(mx.float32))",
        "tests/unit/models/test_losses.py",
    ),
    Fault(
        "loss", "accuracy counts rows that go on", "models/losses.py",
        "counted = halted & (counts > 0)", "counted = counts > 0",
        "tests/unit/models/test_losses.py",
    ),
    Fault(
        "optimiser", "no correction of the second moment's bias", "training/optim.py",
        "root = mx.sqrt(v) * mx.rsqrt(1.0 - mx.power(b2, count))", "root = mx.sqrt(v)",
        "tests/unit/training/test_optim.py",
    ),
    Fault(
        "optimiser", "weight decay does not follow the rate", "training/optim.py",
        "decayed = parameter * (1.0 - lr * self.weight_decay)",
        "decayed = parameter * (1.0 - self.weight_decay * 1e-4)",
        "tests/unit/training/test_optim.py",
    ),
    Fault(
        "optimiser", "warm-up begins at the full rate", "training/optim.py",
        "return base * step / max(1, warmup_steps)", "return base",
        "tests/unit/training/test_optim.py",
    ),
    Fault(
        "optimiser", "rows of one puzzle are not summed before the sign", "training/optim.py",
        "same = (identifiers[:, None] == identifiers[None, :]).astype(mx.float32)",
        "same = mx.eye(len(identifiers))",
        "tests/unit/training/test_optim.py",
    ),
    Fault(
        "optimiser", "the average takes past and present the wrong way round", "training/optim.py",
        "(1.0 - rate) * new + rate * old", "rate * new + (1.0 - rate) * old",
        "tests/unit/training/test_optim.py",
    ),
    Fault(
        "sampler", "every epoch has the same order", "datasets/dataset.py",
        "np.random.Philox(seed + iteration), epochs_per_iter",
        "np.random.Philox(seed), epochs_per_iter",
        "tests/unit/datasets/test_dataset.py",
    ),
    Fault(
        "sampler", "labels that are not scored stay as they are", "datasets/dataset.py",
        "labels[labels == self.spec.ignore_label_id] = IGNORE_LABEL_ID", "pass",
        "tests/unit/datasets/test_dataset.py",
    ),
    Fault(
        "sampler", "of a group always the first puzzle is taken", "datasets/order.py",
        "puzzle = rng.integers(self.groups[group], self.groups[group + 1])",
        "puzzle = self.groups[group]",
        "tests/unit/datasets/test_dataset.py",
    ),
    Fault(
        "sampler", "an evaluation leaves the last batch out", "datasets/dataset.py",
        "for at in range(0, len(mine), batch_size):",
        "for at in range(0, len(mine) - batch_size + 1, batch_size):",
        "tests/unit/datasets/test_dataset.py",
    ),
    Fault(
        "halting", "a row goes on for a step too many", "models/carry.py",
        "halted = steps >= halt_max_steps", "halted = steps > halt_max_steps",
        "tests/unit/models/test_carry.py",
    ),
    Fault(
        "halting", "exploration never holds a row back", "models/carry.py",
        "halted = halted & (steps >= min_steps)", "halted = halted & (steps >= 0)",
        "tests/unit/models/test_carry.py",
    ),
    Fault(
        "halting", "rows halt early in evaluation, too", "models/base.py",
        "return bool(self.training)", "return True",
        "tests/unit/models/test_carry.py tests/unit/models/test_trm.py",
    ),
    Fault(
        "scorer", "votes are counted for the augmented input", "tasks/arc/voting.py",
        "given = change.undo(cut_shape(inputs[at], input_sizes[at], self.size))",
        "given = cut_shape(inputs[at], input_sizes[at], self.size)",
        "tests/unit/tasks/test_arc_voting.py",
    ),
    Fault(
        "scorer", "pass@K looks at one answer too many", "tasks/arc/voting.py",
        "right += [place < k for k in PASS_AT]", "right += [place <= k for k in PASS_AT]",
        "tests/unit/tasks/test_arc_voting.py",
    ),
    Fault(
        "scorer", "a valid grid need not keep its givens", "tasks/sudoku/task.py",
        "return np.asarray(kept & valid_grids(tokens - 1, self.config.size))",
        "return np.asarray(valid_grids(tokens - 1, self.config.size))",
        "tests/unit/tasks/test_sudoku_task.py",
    ),
    Fault(
        "scorer", "any path is a shortest one", "tasks/maze/paths.py",
        "return np.asarray(self.valid & (self.steps == self.shortest))",
        "return np.asarray(self.valid)",
        "tests/unit/tasks/test_maze_paths.py tests/unit/tasks/test_maze_task.py",
    ),
]  # fmt: skip


def copy_package(folder: Path) -> None:
    """Copy what the tests need into an empty folder."""
    for name in ("mlx_trm", "tests", "data"):
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)


def run_tests(folder: Path, tests: Sequence[str]) -> str:
    """Run tests of a copy until one fails.

    Returns:
        The test that failed; empty where none did.

    Raises:
        RuntimeError: if they could not be run.
    """
    words = ["-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]
    done = run([sys.executable, *words], cwd=folder, env={"PYTHONPATH": str(folder), "CI": "1"})
    if done.returncode == 0:
        return ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if done.returncode != 1 or not failed:
        raise RuntimeError(f"{' '.join(words)}:\n{done.stdout}{done.stderr}")
    return failed[0].split(" ", 1)[1].split(" - ")[0]


def try_fault(fault: Fault, folder: Path) -> str:
    """Put a fault into a copy, run its tests, and take it out again; give the test that failed."""
    path = folder / "mlx_trm" / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.right) != 1:
        raise RuntimeError(f"{fault.file}: holds {text.count(fault.right)} times: {fault.right}")
    path.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
    try:
        return run_tests(folder, fault.tests.split())
    finally:
        path.write_text(text, encoding="utf-8")


def main(argv: Optional[List[str]] = None) -> int:
    """Try the faults, and print which test catches each; 1 where one is caught by none."""
    parser = argparse.ArgumentParser(description="Are faults made by hand caught by a test?")
    parser.add_argument("--only", nargs="+", choices=AREAS, default=list(AREAS))
    chosen = [fault for fault in FAULTS if fault.area in parser.parse_args(argv).only]
    missed, started = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_package(folder)
        files: Dict[str, None] = dict.fromkeys(
            test for fault in chosen for test in fault.tests.split()
        )
        failed = run_tests(folder, list(files))
        if failed:
            print(f"without a fault there fails: {failed}")
            return 1
        for fault in chosen:
            caught = try_fault(fault, folder)
            missed += not caught
            print(f"{fault.area:10} {fault.what}: {caught or 'NOT CAUGHT'}", flush=True)
    seconds = time.monotonic() - started
    print(f"{len(chosen) - missed} of {len(chosen)} faults are caught, {seconds:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
