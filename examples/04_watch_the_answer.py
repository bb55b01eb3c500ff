"""Watch the answer to one puzzle evolve, supervision step by supervision step.

python examples/04_watch_the_answer.py runs/sudoku_tiny
python examples/04_watch_the_answer.py runs/sudoku_tiny 1....2....3....4
"""

import sys

import mlx_trm as trm


def main() -> None:
    """Solve a puzzle given on the line, or one of the run's test puzzles."""
    solver = trm.Solver.from_checkpoint(sys.argv[1])
    if len(sys.argv) > 2:
        puzzle = sys.argv[2]
    else:
        _, batch, _ = next(solver.task.dataset("test").eval_batches(1, max_examples=1))
        puzzle = solver.task.format(batch["inputs"][0])
    print(f"puzzle  {puzzle}")
    for step in solver.steps(puzzle):
        print(
            f"step {step.step}  {step.answer}  halt {step.halt_probability:.3f}  "
            f"{step.changed} cells changed, {'right' if step.correct else 'not right'}"
        )


if __name__ == "__main__":
    main()
