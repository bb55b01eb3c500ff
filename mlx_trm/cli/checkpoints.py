"""The trained model that a command works with: which run, which weights, how many bits each."""

import argparse
import logging
import os
from pathlib import Path
from typing import Optional, Tuple

from mlx_trm.cli.arguments import add_plugins, add_weights
from mlx_trm.cli.puzzles import reading_problem
from mlx_trm.config.plugins import import_named
from mlx_trm.errors import ConfigError
from mlx_trm.inference.packaged import Pretrained, find_pretrained, pretrained
from mlx_trm.inference.quantization import BITS, Quantized, quantize_model
from mlx_trm.runs.checkpoint import Checkpoint, load_checkpoint
from mlx_trm.tasks import build_task

LOGGER = logging.getLogger(__name__)


def add_run(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """Declare RUN, the first word of a command; :func:`add_model` declares the options.

    Args:
        parser: of the command.
        optional: whether it may be left out; ``run`` is None then.
    """
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?" if optional else None,
        help="a run folder, a checkpoint folder, or the name of weights that come with the package "
        "(a wrong one lists them)" + ("; left out: those that suit the puzzle" if optional else ""),
    )
    # RUN may be left out and options may stand between it and what follows, so words without a
    # dash are counted when all options have been taken.
    parser.set_defaults(intermixed=optional)


def add_model(parser: argparse.ArgumentParser, settings: bool = False) -> None:
    """Let a command choose among a run's weights, and quantise them.

    Args:
        parser: of the command.
        settings: whether it takes any setting; else ``plugins`` is the only one.
    """
    add_weights(parser)
    add_plugins(parser)
    parser.set_defaults(takes_overrides=True, any_setting=settings)  # for plugins=FILE
    parser.add_argument(
        "--quantize",
        type=int,
        choices=BITS,
        metavar="BITS",
        help="compute with weights of 8 or 4 bits; what that costs is in docs/export.md",
    )


def locate_run(run: str) -> Path:
    """Give the folder that RUN means: the user's own, or one of those that come with the package.

    Raises:
        ConfigError: if there is neither.
    """
    if os.path.exists(run) or os.sep in run:
        return Path(run)
    try:
        return find_pretrained(run).folder
    except ConfigError as error:
        raise ConfigError(f"{run}: no such run or checkpoint folder, and {error}") from error


def check_given(source: Optional[str]) -> None:
    """Refuse a line of ``solve`` that names no puzzle, and say where models come from.

    Args:
        source: the only word, where RUN is left out; None: there is none.

    Raises:
        ConfigError: if there is no word, or it is the name of weights.
    """
    known = {each.name: each for each in pretrained()}
    if source is not None and (source not in known or os.path.exists(source)):
        return
    said = f"{source}: names weights, and PUZZLE is missing" if source else "PUZZLE is missing"
    raise ConfigError(
        f"{said}, such as '1... ..2. .3.. ...4'; solve PUZZLE takes the weights of the package "
        f"that suit it ({', '.join(known)}), solve RUN PUZZLE those of a run folder, which train "
        "makes (--config sudoku_tiny.yaml takes minutes), or convert of published weights "
        "(docs/migration_guide.md)"
    )


def find_weights(source: str, content: Optional[bytes]) -> Pretrained:
    """Give the weights of the package that solve puzzles, where no RUN is named.

    Args:
        source: PUZZLE: a puzzle, the path of a file, or ``-``.
        content: of standard input, where that is meant.

    Raises:
        ConfigError: if there are none; it says what keeps those of the most similar puzzles from
            reading it.
    """
    if os.path.isdir(os.path.expanduser(source)):
        raise ConfigError(f"{source}: is a folder, and PUZZLE is missing: solve RUN PUZZLE")
    if not source.strip():
        check_given(None)
    unread = {}
    for each in pretrained():
        if each.default:
            found = reading_problem(source, build_task(each.config().task), content)
            if found is None:
                return each
            unread[each.name] = found
    problems = {found.problem for found in unread.values()}
    if len(problems) == 1:  # of the file, say, whatever the puzzle
        raise ConfigError(problems.pop())
    # A wrong Sudoku is not told what it lacks as a maze, or at other sizes where one is near.
    likely = max(found.symbols for found in unread.values())
    same = {name: found for name, found in unread.items() if found.symbols == likely}
    near = {name: found for name, found in same.items() if found.near} or same
    said = "; ".join(f"{name}: {found.problem}" for name, found in near.items())
    raise ConfigError(
        f"no weights of the package solve such a puzzle ({said}); mend it, or name a RUN that was "
        "trained on such puzzles"
    )


def load_run(
    args: argparse.Namespace, settings: bool = False
) -> Tuple[Checkpoint, Optional[Quantized]]:
    """Load the model that :func:`add_run` and :func:`add_model` took, and say what was quantised.

    Args:
        args: of the command.
        settings: whether the command takes any setting; else ``plugins`` is the only one.

    Raises:
        CheckpointError: if there is no checkpoint, or it cannot be used.
        ConfigError: if no layer of it can be quantised, or there is a setting that is not taken.
    """
    others = [word for word in args.overrides if word.partition("=")[0].strip() != "plugins"]
    if others and not settings:
        hint = "; put a puzzle of several words between quotes" if hasattr(args, "puzzle") else ""
        raise ConfigError(f"unexpected {others[0]!r}; the only setting here is plugins=FILE{hint}")
    import_named(args.overrides)
    checkpoint = load_checkpoint(locate_run(args.run), args.weights, args.allow_plugins)
    if args.quantize is None:
        return checkpoint, None
    try:
        quantized = quantize_model(checkpoint.model, args.quantize)
    except ValueError as error:
        raise ConfigError(f"--quantize {args.quantize}: {checkpoint.path}: {error}") from error
    LOGGER.info("%s", quantized.describe())
    return checkpoint, quantized
