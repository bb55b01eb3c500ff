"""``python -m mlx_trm.solve``: watch a trained model answer puzzles."""

import argparse
import logging
import math
import sys
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np
from tqdm import tqdm

from mlx_trm.cli.arguments import (
    add_json,
    add_search,
    asks_for_search,
    positive,
    read_search,
    save_json,
)
from mlx_trm.cli.checkpoints import add_model, add_run, find_weights, load_run
from mlx_trm.cli.pictures import Panel, add_png, check_matplotlib, save_png
from mlx_trm.cli.puzzles import Given, read_given, read_standard_input
from mlx_trm.cli.running import make_main
from mlx_trm.cli.tables import side_by_side, underline_changes, use_color
from mlx_trm.errors import ConfigError
from mlx_trm.inference.search import Result, SearchSettings
from mlx_trm.inference.solver import Solver, SolverStep
from mlx_trm.runs.puzzle_rows import read_row_names
from mlx_trm.tasks import Task

LOGGER = logging.getLogger(__name__)
BATCH_SIZE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    add_run(parser, optional=True)
    parser.add_argument(
        "puzzle",
        metavar="PUZZLE",
        help="a puzzle such as '1... ..2. .3.. ...4', a maze such as 'S.#/..#/..G', the name of an "
        "ARC task of the run's data or a grid such as '012/345', a file of them (Sudoku: one a "
        "line; mazes and grids: with a blank line between; a CSV with a column question; an ARC "
        "task as JSON), or - for standard input",
    )
    parser.add_argument(
        "--show",
        choices=("final", "steps"),
        default="final",
        help="the last answer, or the answer after every supervision step (default: final)",
    )
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="supervision steps (default: as in training)"
    )
    parser.add_argument(
        "--stop-when-halted",
        action="store_true",
        help="end a puzzle as soon as its halt probability is above one half",
    )
    add_search(parser)
    add_png(parser, "also draw the puzzles and their answers there (mazes, ARC)")
    add_model(parser)
    add_json(parser, "also write every step there")


def run(args: argparse.Namespace) -> int:
    """Solve every puzzle and print what became of it.

    Returns:
        0, whether the answers are right or not: the command did what it was asked for.
    """
    if args.png is not None:
        check_matplotlib("--png")
    if asks_for_search(args) and (args.show == "steps" or args.stop_when_halted):
        raise ConfigError(
            "--show steps and --stop-when-halted: are for one plain run; leave them out, or the "
            "options of several runs (--halt q also ends a run where the model believes its answer)"
        )
    content = read_standard_input() if args.puzzle == "-" else None
    search = {}
    if args.run is None:
        entry = find_weights(args.puzzle, content)
        LOGGER.info("weights of the package: %s (%s)", entry.name, entry.summary)
        args.run, search = str(entry.folder), entry.search
    solver = open_solver(args)
    given = read_given(args.puzzle, solver.task, content)
    if args.png is not None and given:
        solver.task.image(given[0].inputs)  # says so where the task has no pictures
    display = Display(solver.task, len(given), args.show == "steps", args.quiet)
    plain = args.show == "steps" or args.stop_when_halted or args.steps is not None
    if asks_for_search(args):
        shown = searched(solver, given, read_search(args, BATCH_SIZE), args, display)
    elif search and not plain:
        settings = SearchSettings(**search, batch_size=BATCH_SIZE)
        shown = searched(solver, given, settings, args, display)
    else:
        shown = stepped(solver, given, args, display)
    records, pictures, sums = shown
    if args.png is not None:
        save_png(args.png, pictures)
    if args.json is not None:
        save_json(args.json, records)
    if len(given) > 1:
        print(sums)
    return 0


class Shown(NamedTuple):
    """What is left of puzzles that have been shown.

    Attributes:
        records: one a puzzle, for ``--json``.
        pictures: panels of each puzzle, for ``--png``.
        summary: all of them in a line.
    """

    records: List[Dict[str, Any]]
    pictures: List[List[Panel]]
    summary: str


def open_solver(args: argparse.Namespace) -> Solver:
    """Give a solver with the model that the command line names."""
    checkpoint, _ = load_run(args)
    names = read_row_names(checkpoint.path)
    return Solver(checkpoint.model, checkpoint.config, row_names=names)


def stepped(
    solver: Solver, given: Sequence[Given], args: argparse.Namespace, display: "Display"
) -> Shown:
    """Run each puzzle once, and show its steps or its last one."""
    if args.show == "steps" or args.json is not None:
        histories = watched(solver, given, args, display)
    else:
        histories = batched(solver, given, args)
    records, last, pictures = [], [], []
    for number, (puzzle, steps) in enumerate(zip(given, histories)):
        last.append(steps[-1])
        records.append(record(solver.task, puzzle, steps))
        display.result(number, puzzle, steps[-1])
        if args.png is not None:
            pictures.append(panels(solver.task, puzzle, steps))
    return Shown(records, pictures, summary(last) if last else "")


def searched(
    solver: Solver,
    given: Sequence[Given],
    settings: SearchSettings,
    args: argparse.Namespace,
    display: "Display",
) -> Shown:
    """Search an answer of each puzzle, and show it as soon as it and those before are there."""
    records, results, pictures = [], [], []
    shown = sys.stderr.isatty() and not args.quiet
    with tqdm(unit="step", leave=False, disable=not shown, dynamic_ncols=True) as bar:
        bar.set_description(f"0 of {counted(len(given), 'puzzle')}")
        texts = [puzzle.text for puzzle in given]
        for result in solver.search(texts, settings, on_step=lambda: tick(bar)):
            puzzle = given[result.place]
            results.append(result)
            records.append(record_result(solver.task, puzzle, result))
            bar.clear()
            display.found(result.place, puzzle, result)
            bar.set_description(f"{len(results)} of {counted(len(given), 'puzzle')}")
            if args.png is not None:
                pictures.append(panels(solver.task, puzzle, [as_step(result)]))
    return Shown(records, pictures, summary_of_search(results) if results else "")


def tick(bar: "tqdm[Any]") -> None:
    """Count a step in a bar."""
    bar.update()


def watched(
    solver: Solver, given: Sequence[Given], args: argparse.Namespace, display: "Display"
) -> Iterator[List[SolverStep]]:
    """Solve one puzzle after another, showing each step as soon as it is there."""
    for number, puzzle in enumerate(given):
        display.start(number, puzzle)
        steps: List[SolverStep] = []
        for step in solver.steps(puzzle.text, args.steps, args.stop_when_halted):
            display.step(puzzle, step, steps[-1].tokens if steps else puzzle.inputs)
            steps.append(step)
        yield steps


def batched(
    solver: Solver, given: Sequence[Given], args: argparse.Namespace
) -> Iterator[List[SolverStep]]:
    """Solve puzzles side by side; each is given its last step only."""
    for start in range(0, len(given), BATCH_SIZE):
        texts = [puzzle.text for puzzle in given[start : start + BATCH_SIZE]]
        for step in solver.solve_many(texts, args.steps, BATCH_SIZE, args.stop_when_halted):
            yield [step]


def panels(task: Task, puzzle: Given, steps: Sequence[SolverStep]) -> List[Panel]:
    """Paint a puzzle, its answers, and the right one where it is known."""
    found = [Panel(puzzle.text if len(puzzle.text) < 20 else "puzzle", task.image(puzzle.inputs))]
    for step in steps:
        state = {True: ", right", False: ", wrong", None: ""}[step.correct]
        found.append(Panel(f"step {step.step}{state}", task.image(step.tokens, puzzle.inputs)))
    if puzzle.labels is not None:
        found.append(Panel("solution", task.image(puzzle.labels, puzzle.inputs)))
    return found


# What is shown ---------------------------------------------------------------------------------


class Display:
    """Prints puzzles, steps and results."""

    def __init__(self, task: Task, count: int, every_step: bool, quiet: bool) -> None:
        """Say how much to print.

        Args:
            task: draws the grids.
            count: puzzles in all.
            every_step: whether each supervision step is shown.
            quiet: one line for each puzzle, nothing else.
        """
        self.task = task
        self.count = count
        self.every_step = every_step
        self.quiet = quiet
        self.color = use_color()

    def start(self, number: int, puzzle: Given) -> None:
        """Show the puzzle, where its steps are going to follow."""
        if self.every_step and not self.quiet:
            print(self._title(number, puzzle))
            print(self._draw_puzzle(puzzle), flush=True)

    def step(self, puzzle: Given, step: SolverStep, before: np.ndarray) -> None:
        """Show one step; cells that changed since ``before`` are underlined in colour."""
        if not self.every_step or self.quiet:
            return
        cells = "cell" if step.changed == 1 else "cells"
        print(f"\nstep {step.step}: {step.changed} {cells} changed, {self._verdict(puzzle, step)}")
        drawn = self._draw(step.tokens, puzzle)
        if self.color:
            drawn = underline_changes(
                drawn, self.task.render(step.tokens), self.task.render(before)
            )
        print(drawn, flush=True)

    def result(self, number: int, puzzle: Given, step: SolverStep) -> None:
        """Show how a puzzle ended."""
        text = f"after {counted(step.step, 'step')}: {self._verdict(puzzle, step)}"
        self._answer(number, puzzle, step.tokens, step.answer, text)

    def _answer(
        self, number: int, puzzle: Given, tokens: np.ndarray, answer: str, text: str
    ) -> None:
        if self.quiet:
            print(f"{answer}  {text}")
            return
        if not self.every_step:
            print(self._title(number, puzzle))
            print(side_by_side(self._draw_puzzle(puzzle), self._draw(tokens, puzzle)))
        print(f"{text}\n" if self.count > 1 else text, flush=True)

    def found(self, number: int, puzzle: Given, result: Result) -> None:
        """Show what a search found, what that took, and how it is known."""
        description = self.task.describe_answer(puzzle.inputs, result.tokens)
        said = describe_result(puzzle, result, description)
        text = f"after {counted(result.steps, 'step')} in {counted(result.rollouts, 'rollout')}"
        self._answer(number, puzzle, result.tokens, result.answer, f"{text}: {said}")

    def _title(self, number: int, puzzle: Given) -> str:
        place = f" ({puzzle.where})" if puzzle.where else ""
        name = f"puzzle {number + 1} of {self.count}" if self.count > 1 else "puzzle"
        return f"{name}{place}: {self.task.format(puzzle.inputs)}"

    def _verdict(self, puzzle: Given, step: SolverStep) -> str:
        return verdict(puzzle, step, self.task.describe_answer(puzzle.inputs, step.tokens))

    def _draw_puzzle(self, puzzle: Given) -> str:
        return self.task.render(puzzle.inputs, puzzle.inputs, color=self.color)

    def _draw(self, tokens: np.ndarray, puzzle: Given) -> str:
        return self.task.render(tokens, puzzle.inputs, puzzle.labels, self.color)


def verdict(puzzle: Given, step: SolverStep, description: str = "") -> str:
    """Say whether a step's answer is right, what the task adds, and what the model believes."""
    belief = f"halt probability {step.halt_probability:.3f}"
    return judged(puzzle, step.correct, step.tokens, [description, belief])


def describe_result(puzzle: Given, result: Result, description: str = "") -> str:
    """Say whether an answer is right, what the task adds, and how it is known."""
    known = f"q {result.probability:.2f}"
    if result.accepted is not None:
        known = (
            "accepted by the rules" if result.accepted else f"not accepted by the rules, {known}"
        )
    return judged(puzzle, result.correct, result.tokens, [description, known])


def judged(
    puzzle: Given, correct: Optional[bool], tokens: np.ndarray, reasons: Sequence[str]
) -> str:
    """Put right or wrong, where that is known, before the reasons that are not empty."""
    said = [reason for reason in reasons if reason]
    if correct is not None:
        said.insert(0, "right" if correct else "wrong")
    if correct is False and puzzle.labels is not None:
        cells = puzzle.labels != 0  # not padding
        right = int(np.count_nonzero((tokens == puzzle.labels) & cells))
        said[0] = f"wrong ({right} of {np.count_nonzero(cells)} cells right)"
    return ", ".join(said)


def counted(number: int, what: str) -> str:
    """Give such as ``1 step`` or ``2 steps``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def summary(steps: Sequence[SolverStep]) -> str:
    """Sum several results up in a line."""
    count = len(steps)
    mean = sum(step.halt_probability for step in steps) / count
    taken = sum(step.step for step in steps) / count
    text = f"{count} puzzles"
    checked = [step.correct for step in steps if step.correct is not None]
    if checked:
        text += f": {sum(checked)} right ({100 * sum(checked) / len(checked):.1f} %)"
    return f"{text}, {taken:.1f} steps and halt probability {mean:.3f} on average"


def summary_of_search(results: Sequence[Result]) -> str:
    """Sum several results up in a line."""
    count = len(results)
    text = f"{count} puzzles"
    checked = [each.correct for each in results if each.correct is not None]
    if checked:
        text += f": {sum(checked)} right ({100 * sum(checked) / len(checked):.1f} %)"
    if results[0].accepted is not None:
        text += f", {sum(bool(each.accepted) for each in results)} accepted by the rules"
    steps, rollouts = (
        sum(values) / count for values in zip(*((r.steps, r.rollouts) for r in results))
    )
    return f"{text}, {steps:.1f} steps and {rollouts:.1f} rollouts on average"


def as_step(result: Result) -> SolverStep:
    """Give a result as the last step of a run, to be drawn like one."""
    return SolverStep(
        step=result.steps,
        answer=result.answer,
        halt_probability=result.probability,
        correct=result.correct,
        changed=0,
        tokens=result.tokens,
    )


def record_result(task: Task, puzzle: Given, result: Result) -> Dict[str, Any]:
    """Turn a result into what ``--json`` writes."""
    return {
        **result.record(task),
        "solution": None if puzzle.labels is None else task.format(puzzle.labels),
        "confidence": [round(float(each), 4) for each in result.confidence],
    }


def record(task: Task, puzzle: Given, steps: Sequence[SolverStep]) -> Dict[str, Any]:
    """Turn a puzzle's steps into what ``--json`` writes; a belief that is no number is null."""
    return {
        "puzzle": task.format(puzzle.inputs),
        "solution": None if puzzle.labels is None else task.format(puzzle.labels),
        "steps": [
            {
                "step": step.step,
                "answer": step.answer,
                "halt_probability": (
                    step.halt_probability if math.isfinite(step.halt_probability) else None
                ),
                "correct": step.correct,
                "changed": step.changed,
            }
            for step in steps
        ],
    }


main = make_main("solve", add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
