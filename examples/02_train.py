"""Train from a packaged configuration; settings can be changed on the line.

python examples/02_train.py
python examples/02_train.py train.epochs=16 run_dir=runs/longer
"""

import sys
from typing import Any, Dict

import mlx_trm as trm


def show(event: Dict[str, Any]) -> None:
    """Print an evaluation."""
    for name, metrics in event["metrics"].items():
        print(f"step {event['step']}, {name}: exact accuracy {metrics['exact_accuracy']:.3f}")


def main() -> None:
    """Train a tiny model on 4x4 Sudoku: one to three minutes on a CPU."""
    config = trm.load_config("sudoku_tiny.yaml", sys.argv[1:])
    report = trm.Trainer(config).fit(on_eval=show)
    print(f"{report.steps} steps in {report.seconds:.0f} s")
    print(f"run folder: {report.run_dir}")


if __name__ == "__main__":
    main()
