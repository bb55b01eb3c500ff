"""Training speed of one process and of several on this machine, over the ring backend.

    python benchmarks/processes.py --sizes 1 2 --hidden 128 --batch 64

Every process gets one BLAS thread, so that with as many processes as cores the ideal is a speed
that grows with their number. Each size is measured twice, in turns; the better one counts.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Dict

from launching import Group, together, train_command
from watched import later_lines

CONFIG = """
task: {name: sudoku, size: 9, train_puzzles: 512, test_puzzles: 16, seed: 1}
model: {name: trm, hidden_size: HIDDEN, num_heads: 4, L_layers: 2, H_cycles: 2, L_cycles: 3,
        mlp_t: true, pos_encodings: none, halt_max_steps: 4}
train: {batch_size: BATCH, epochs: 1000000, max_steps: STEPS, log_interval: 5}
eval: {max_examples: 1}
"""


def steps_per_second(folder: Path, size: int, name: str) -> float:
    """Train with so many processes and give the speed of the second half of the run."""
    words = ["--config", str(folder / "c.yaml"), "-q", "--device", "cpu"]
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environments = [{**each, **one_thread} for each in together(size, False, folder)]
    command = train_command([*words, f"run_dir={folder / name}"])
    Group(command, environments, folder / f"{name}.txt").finish()
    later = sorted(line["steps_per_second"] for line in later_lines(folder / name))
    return float(later[len(later) // 2])


def main() -> None:
    """Measure, and print a line for each number of processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    best: Dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = CONFIG.replace("HIDDEN", str(args.hidden)).replace("BATCH", str(args.batch))
        (folder / "c.yaml").write_text(text.replace("STEPS", str(args.steps)))
        for turn in range(2):
            for size in args.sizes:
                speed = steps_per_second(folder, size, f"run{size}-{turn}")
                best[size] = max(best.get(size, 0.0), speed)
    first = best[args.sizes[0]] / args.sizes[0]
    for size, speed in best.items():
        share = speed / (first * size)
        print(f"{size} processes: {speed:.3f} steps/s, {100 * share:.0f} % of ideal")


if __name__ == "__main__":
    main()
