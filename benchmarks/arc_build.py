"""Time and memory of building an ARC data set, beside the original's builder where it is there.

    python benchmarks/arc_build.py arc-agi --num-aug 50 --upstream TinyRecursiveModels

The builders run one after the other, each in a process of its own; what they write is compared.
The original needs argdantic, pydantic and NumPy: `--python` names an interpreter that has them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List, NamedTuple, Optional

import numpy as np


class Run(NamedTuple):
    """What a build took: wall-clock and processor seconds, and its largest memory in MiB."""

    seconds: float
    processor: float
    memory: float


def timed(command: List[str], folder: Optional[Path] = None) -> Run:
    """Run a command and measure it."""
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
    seconds = time.perf_counter() - started
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / scale)


def differing(ours: Path, theirs: Path) -> List[str]:
    """Name the arrays that are not the same."""
    return [
        str(path.relative_to(theirs))
        for path in sorted(theirs.rglob("*.npy"))
        if not np.array_equal(
            np.load(path, mmap_mode="r"), np.load(ours / path.relative_to(theirs), mmap_mode="r")
        )
    ]


def our_command(
    prefix: str, num_aug: int, subsets: List[str], test_set_name: str, output: Path
) -> List[str]:
    """Give the command that builds with mlx_trm."""
    return [sys.executable, "-m", "mlx_trm.data", "build", "--config", "arc1.yaml", "-q",
            f"task.input_file_prefix={prefix}", f"task.num_aug={num_aug}",
            f"task.subsets=[{','.join(subsets)}]", f"task.test_set_name={test_set_name}",
            "--output", str(output)]  # fmt: skip


def main() -> None:
    """Build, and print a line for each builder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("prefix", help="where the names of the raw files begin")
    parser.add_argument("--num-aug", type=int, default=50, help="augmentations (default: 50)")
    parser.add_argument("--subsets", nargs="+", default=["training", "evaluation", "concept"])
    parser.add_argument("--test-set-name", default="evaluation")
    parser.add_argument("--upstream", type=Path, help="a checkout of the original")
    parser.add_argument("--python", default=sys.executable, help="the original's interpreter")
    args = parser.parse_args()
    prefix = os.path.abspath(args.prefix)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = timed(
            our_command(prefix, args.num_aug, args.subsets, args.test_set_name, folder / "ours")
        )
        runs = [("mlx_trm", ours)]
        if args.upstream is not None:
            theirs = timed(
                [args.python, "-m", "dataset.build_arc_dataset", "--input-file-prefix", prefix,
                 "--output-dir", str(folder / "theirs"), "--subsets", *args.subsets,
                 "--test-set-name", args.test_set_name, "--num-aug", str(args.num_aug)],
                args.upstream,
            )  # fmt: skip
            runs.append(("original", theirs))
        for label, run in runs:
            print(
                f"{label:9}{run.seconds:8.1f} s  {run.processor:8.1f} s of processor  "
                f"{run.memory:8.0f} MiB"
            )
        if args.upstream is not None:
            wrong = differing(folder / "ours", folder / "theirs")
            print(f"ratio {theirs.seconds / ours.seconds:.1f}")
            print(f"differ: {', '.join(wrong)}" if wrong else "all arrays are the same")


if __name__ == "__main__":
    main()
