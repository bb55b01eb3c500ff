"""What ``solve`` prints of puzzles and results, its ``--json`` writes, and its options draw."""

import argparse
import logging
import math
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from mlx_trm.cli.arguments import writable
from mlx_trm.cli.puzzles import Given
from mlx_trm.cli.tables import side_by_side, use_color
from mlx_trm.drawing.page import save_page
from mlx_trm.drawing.raster import check_pillow, save_animation, save_strip, scene_panels
from mlx_trm.drawing.scenes import Scene
from mlx_trm.drawing.terminal import EXPLAINED, with_beliefs
from mlx_trm.inference.search import Result
from mlx_trm.inference.solver import SolverStep
from mlx_trm.tasks import Task

LOGGER = logging.getLogger(__name__)


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
        self._beliefs: List[float] = []

    def start(self, number: int, puzzle: Given) -> None:
        """Show the puzzle, where its steps are going to follow."""
        if self.every_step and not self.quiet:
            print(self._title(number, puzzle))
            print(self._draw_puzzle(puzzle))
            print(EXPLAINED, flush=True)
            self._beliefs = []

    def step(self, puzzle: Given, step: SolverStep, before: np.ndarray) -> None:
        """Show one step: cells that changed since ``before`` and wrong ones are marked."""
        if not self.every_step or self.quiet:
            return
        cells = "cell" if step.changed == 1 else "cells"
        print(f"\nstep {step.step}: {step.changed} {cells} changed, {self._verdict(puzzle, step)}")
        drawn = self.task.render_step(step.tokens, before, puzzle.inputs, puzzle.labels, self.color)
        self._beliefs.append(step.halt_probability)
        print(with_beliefs(drawn, self._beliefs), flush=True)

    def result(self, number: int, puzzle: Given, step: SolverStep) -> None:
        """Show how a puzzle ended."""
        text = f"after {counted(step.step, 'step')}: {self._verdict(puzzle, step)}"
        self._answer(number, puzzle, step, text)

    def _answer(
        self, number: int, puzzle: Given, found: Union[SolverStep, Result], text: str
    ) -> None:
        tokens, answer, correct = found.tokens, found.answer, found.correct
        if self.quiet:
            print(f"{answer}  {text}")
            return
        if not self.every_step:
            print(self._title(number, puzzle))
            print(side_by_side(self._draw_puzzle(puzzle), self._draw(tokens, puzzle)))
        print(text)
        if correct is False and puzzle.by_rules and puzzle.labels is not None:
            print(f"not the model's, but what the rules give: {self.task.format(puzzle.labels)}")
            print(self._draw(puzzle.labels, puzzle))
        print(end="\n" if self.count > 1 else "", flush=True)

    def found(self, number: int, puzzle: Given, result: Result) -> None:
        """Show what a search found, what that took, and how it is known."""
        description = self.task.describe_answer(puzzle.inputs, result.tokens)
        said = describe_result(puzzle, result, description)
        text = f"after {counted(result.steps, 'step')} in {counted(result.rollouts, 'rollout')}"
        failed = result.accepted is False and not self.quiet
        why = "" if not failed else self.task.describe_difficulty(puzzle.inputs)
        self._answer(number, puzzle, result, f"{text}: {said}" + (f"\n{why}" if why else ""))

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
        cells = puzzle.labels > 0  # not padding, nor what is not scored
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


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Let a command draw the steps of its puzzles."""
    for option, text in (
        ("--png", "also draw every step there, as a strip"),
        ("--gif", "also draw every step there, as an animation"),
        ("--html", "also write a page there that shows every step of every rollout, by sliders"),
    ):
        parser.add_argument(option, type=writable, metavar="FILE", help=text)


def asks_for_pictures(args: argparse.Namespace) -> bool:
    """Whether any option of :func:`add_pictures` was given."""
    return any(file is not None for file in (args.png, args.gif, args.html))


def check_pictures(args: argparse.Namespace) -> None:
    """Refuse pictures that cannot be drawn; before the work, not after it.

    Raises:
        ConfigError: saying what to install.
    """
    for option, file in (("--png", args.png), ("--gif", args.gif)):
        if file is not None:
            check_pillow(option)


def save_pictures(args: argparse.Namespace, scenes: Sequence[Scene]) -> None:
    """Write the pictures that were asked for, and say where they are.

    Args:
        args: with the options of :func:`add_pictures`.
        scenes: a puzzle each, at least one.

    Raises:
        ConfigError: if there are too many steps, or a file cannot be written.
    """
    if args.png is not None:
        save_strip(args.png, [scene_panels(scene) for scene in scenes])
    if args.gif is not None:
        save_animation(args.gif, scenes)
    if args.html is not None:
        save_page(args.html, scenes)
    for what in ("png", "gif", "html"):
        if getattr(args, what) is not None:
            LOGGER.info("written: %s", getattr(args, what))
