"""The options by which ``solve`` draws the steps: ``--png``, ``--gif``, ``--html``."""

import argparse
from typing import Sequence

from mlx_trm.cli.arguments import writable
from mlx_trm.drawing.page import save_page
from mlx_trm.drawing.raster import check_pillow, save_animation, save_strip, scene_panels
from mlx_trm.drawing.scenes import Scene


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
    """Write the pictures that were asked for.

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
