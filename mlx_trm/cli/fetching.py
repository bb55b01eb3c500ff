"""``python -m mlx_trm.data fetch``: download the sets that are too large for the package."""

import argparse
import shlex
import sys
from typing import Any, List

from mlx_trm.cli import tables as display
from mlx_trm.datasets.sources import (
    BY_HAND,
    SOURCES,
    ByHand,
    Source,
    fetched_folder,
    fetched_root,
    find_source,
    is_fetched,
)

UNKNOWN = "unknown"


def add_fetch(commands: Any) -> None:
    """Declare the sub-command ``fetch`` and its arguments."""
    action = commands.add_parser("fetch", help="download Sudoku-Extreme, mazes or ARC-AGI")
    action.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"any of {', '.join([*SOURCES, *BY_HAND])} (default: --list)",
    )
    action.add_argument(
        "--list", action="store_true", help="show the sets, their licences, and what is there"
    )
    action.add_argument(
        "--force", action="store_true", help="download anew what is there, and replace it"
    )
    action.add_argument(
        "--timeout",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long a server may send nothing (default: 30)",
    )
    action.set_defaults(do=run_fetch)


def seconds(text: str) -> float:
    """Read a number of seconds above 0, a day at most."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def run_fetch(args: argparse.Namespace) -> None:
    """Fetch sets, or show which there are."""
    by_hand = [BY_HAND[name] for name in dict.fromkeys(args.names) if name in BY_HAND]
    sources = [find_source(name) for name in dict.fromkeys(args.names) if name not in BY_HAND]
    for each in by_hand or (() if sources else BY_HAND.values()):
        print("\n".join([*hand_lines(each), ""]))
    if by_hand and not sources:
        return
    if args.list or not sources:
        print(sets_table(sources or list(SOURCES.values())))
        print(f"\nFetched sets go to {fetched_root()}")
        if not args.list:
            print("Fetch some: python -m mlx_trm.data fetch NAME [NAME ...]")
        return
    from mlx_trm.datasets.fetch import fetch

    progress = not args.quiet and sys.stderr.isatty()
    for source in sources:
        result = fetch(source.name, args.force, args.timeout, progress)
        what = "fetched" if result.downloaded else "is there already and was checked"
        total = sum(size for size, _ in result.files.values())
        count = f"{len(result.files):,} files, {display.size(total)}"
        print(f"{source.name}: {what}: {count}, in {result.place}")
    for line in dict.fromkeys(line for source in sources for line in use_lines(source)):
        print(line)


def hand_lines(source: ByHand) -> List[str]:
    """Say where to download a set that is not fetched, and what to do then."""
    return [
        f"{source.name}: {source.summary}; {source.licence}; {source.page}",
        f"  this command does not fetch it; download {source.url}",
        *(f"  {step}" for step in source.steps),
    ]


def sets_table(sources: List[Source]) -> str:
    """Lay out the sets: what they are, how large, whose, and whether they are there."""
    rows = [
        (
            source.name,
            source.summary,
            UNKNOWN if source.size is None else display.size(source.size),
            source.licence,
            "yes" if is_fetched(source.name) else "no",
            source.page,
        )
        for source in sources
    ]
    return display.table(rows, ("name", "content", "size", "licence", "here", "source"))


def use_lines(source: Source) -> List[str]:
    """Say how training uses a set."""
    lines = []
    for preset in source.presets:
        words = ["python", "-m", "mlx_trm.train", "--config", preset]
        if source.base_url is None:
            place = fetched_folder(source.name)
            words += [f"task.{part}_file={place / part}.csv" for part in ("train", "test")]
        lines.append("use it: " + shlex.join(words))
        needed = [other.name for other in SOURCES.values() if preset in other.presets]
        missing = [name for name in needed if not is_fetched(name)]
        if missing and len(needed) > 1:
            lines[-1] += f"  (needs {', '.join(missing)} too: python -m mlx_trm.data fetch "
            lines[-1] += " ".join(missing) + ")"
    return lines
