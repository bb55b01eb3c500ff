"""``python -m mlx_trm.solve``: watch a trained model answer puzzles."""

import argparse
import logging
import sys
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

from tqdm import tqdm

from mlx_trm.cli.arguments import (
    add_json,
    add_search,
    asks_for_search,
    positive,
    read_search,
    save_json,
)
from mlx_trm.cli.checkpoints import (
    add_model,
    add_run,
    check_given,
    find_weights,
    load_run,
    locate_run,
)
from mlx_trm.cli.puzzles import Given, read_given, read_standard_input
from mlx_trm.cli.running import make_main
from mlx_trm.cli.solve_display import (
    Display,
    add_pictures,
    asks_for_pictures,
    check_pictures,
    counted,
    record,
    record_result,
    save_pictures,
    summary,
    summary_of_search,
)
from mlx_trm.drawing.scenes import Scene, Subject
from mlx_trm.errors import ConfigError
from mlx_trm.inference.filming import Recorder, film_steps
from mlx_trm.inference.packaged import find_search
from mlx_trm.inference.search import SearchSettings
from mlx_trm.inference.solver import Solver, SolverStep
from mlx_trm.runs.puzzle_rows import read_row_names

LOGGER = logging.getLogger(__name__)
BATCH_SIZE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    add_run(parser, optional=True)
    parser.add_argument(
        "puzzle",
        metavar="PUZZLE",
        nargs="?",
        help="a puzzle such as '1... ..2. .3.. ...4', a maze such as 'S.#/..#/..G', a chess "
        "position in FEN, a Go board as SGF or rows such as '.XO/...', the name of an ARC task of "
        "the run's data or a grid such as '012/345', a file of them (Sudoku: one a "
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
    add_pictures(parser)
    add_model(parser)
    add_json(parser, "also write every step there")


def run(args: argparse.Namespace) -> int:
    """Solve every puzzle and print what became of it.

    Returns:
        0, whether the answers are right or not: the command did what it was asked for.
    """
    if args.puzzle is None:  # of one word alone the parser cannot tell what it is
        args.run, args.puzzle = None, args.run
    check_given(args.puzzle)
    check_pictures(args)
    if asks_for_search(args) and (args.show == "steps" or args.stop_when_halted):
        raise ConfigError(
            "--show steps and --stop-when-halted: are for one plain run; leave them out, or the "
            "options of several runs (--halt q also ends a run where the model believes its answer)"
        )
    content = read_standard_input() if args.puzzle == "-" else None
    if args.run is None:
        entry = find_weights(args.puzzle, content)
        LOGGER.info("weights of the package: %s (%s)", entry.name, entry.summary)
        args.run = str(entry.folder)
    # Weights of the package are solved with what suits them, whether they were named or found.
    search = find_search(locate_run(args.run))
    solver = open_solver(args)
    given = read_given(args.puzzle, solver.task, content)
    display = Display(solver.task, len(given), args.show == "steps", args.quiet)
    plain = args.show == "steps" or args.stop_when_halted or args.steps is not None
    if asks_for_search(args):
        shown = searched(solver, given, read_search(args, BATCH_SIZE), args, display)
    elif search and not plain:
        settings = SearchSettings(**search, batch_size=BATCH_SIZE)
        shown = searched(solver, given, settings, args, display)
    else:
        shown = stepped(solver, given, args, display)
    records, scenes, sums = shown
    save_pictures(args, scenes)
    if args.json is not None:
        save_json(args.json, records)
    if len(given) > 1:
        print(sums)
    return 0


class Shown(NamedTuple):
    """What is left of puzzles that have been shown.

    Attributes:
        records: one a puzzle, for ``--json``.
        scenes: the steps of each, for pictures; empty where none was asked for.
        summary: all of them in a line.
    """

    records: List[Dict[str, Any]]
    scenes: List[Scene]
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
    if args.show == "steps" or args.json is not None or asks_for_pictures(args):
        histories = watched(solver, given, args, display)
    else:
        histories = batched(solver, given, args)
    records, last, scenes = [], [], []
    for number, (puzzle, steps) in enumerate(zip(given, histories)):
        last.append(steps[-1])
        records.append(record(solver.task, puzzle, steps))
        display.result(number, puzzle, steps[-1])
        if asks_for_pictures(args):
            subject = Subject(solver.task, puzzle.inputs, puzzle.labels)
            scenes.append(subject.scene(title(puzzle), (film_steps(subject, steps),)))
    return Shown(records, scenes, summary(last) if last else "")


def searched(
    solver: Solver,
    given: Sequence[Given],
    settings: SearchSettings,
    args: argparse.Namespace,
    display: "Display",
) -> Shown:
    """Search an answer of each puzzle, and show it as soon as it and those before are there."""
    records, results, scenes = [], [], []
    recorder = Recorder(solver.task) if asks_for_pictures(args) else None
    shown = sys.stderr.isatty() and not args.quiet
    with tqdm(unit="step", leave=False, disable=not shown, dynamic_ncols=True) as bar:
        bar.set_description(f"0 of {counted(len(given), 'puzzle')}")
        texts = [puzzle.text for puzzle in given]
        note = None if recorder is None else recorder.note
        for result in solver.search(texts, settings, lambda: tick(bar), note):
            puzzle = given[result.place]
            results.append(result)
            records.append(record_result(solver.task, puzzle, result))
            bar.clear()
            display.found(result.place, puzzle, result)
            bar.set_description(f"{len(results)} of {counted(len(given), 'puzzle')}")
            if recorder is not None:
                scenes.append(recorder.scene(result, title(puzzle), puzzle.labels))
    return Shown(records, scenes, summary_of_search(results) if results else "")


def title(puzzle: Given) -> str:
    """Give what a picture calls a puzzle."""
    return " ".join((puzzle.where or puzzle.text).split())


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


main = make_main("solve", add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
