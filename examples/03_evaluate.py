"""Evaluate a trained model with fewer and with more supervision steps than it was trained with.

python examples/03_evaluate.py runs/sudoku_tiny
"""

import sys

import mlx_trm as trm


def main() -> None:
    """Print exact accuracy on a sample of the test puzzles, by number of steps."""
    checkpoint = trm.load_checkpoint(sys.argv[1])
    evaluator = trm.Evaluator(checkpoint.model, checkpoint.config)
    for steps in (1, 2, 4, 8):
        for name, metrics in evaluator.run("test", max_examples=200, steps=steps).items():
            low, high = metrics["exact_accuracy_low"], metrics["exact_accuracy_high"]
            print(
                f"{steps} steps, {name}: exact {metrics['exact_accuracy']:.3f} "
                f"(95 % interval {low:.3f} to {high:.3f}), cells {metrics['accuracy']:.3f}"
            )


if __name__ == "__main__":
    main()
