"""``python -m mlx_trm.data fetch``: download the sets that are too large for the package."""

import argparse
import logging
import shlex
import sys
import time
from typing import Any, List, Optional

from tqdm import tqdm

from mlx_trm.cli import tables as display
from mlx_trm.datasets.sources import (
    SOURCES,
    Source,
    fetched_folder,
    fetched_root,
    find_source,
    is_fetched,
)

LOGGER = logging.getLogger(__name__)

UNKNOWN = "unknown"


def add_fetch(commands: Any) -> None:
    """Declare the sub-command ``fetch`` and its arguments."""
    action = commands.add_parser("fetch", help="download Sudoku-Extreme, mazes or ARC-AGI")
    action.add_argument(
        "names", nargs="*", metavar="NAME", help=f"any of {', '.join(SOURCES)} (default: --list)"
    )
    action.add_argument(
        "--list", action="store_true", help="show the sets, their licences, and what is there"
    )
    action.add_argument(
        "--force", action="store_true", help="download anew what is there, and replace it"
    )
    action.add_argument(
        "--accept-changed",
        action="store_true",
        help="take content that differs from what the first download recorded",
    )
    action.add_argument(
        "--no-hub", action="store_true", help="do without huggingface_hub where it is installed"
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
    sources = [find_source(name) for name in dict.fromkeys(args.names)]
    if args.list or not sources:
        print(sets_table(sources or list(SOURCES.values())))
        print(f"\nFetched sets go to {fetched_root()}")
        if not args.list:
            print("Fetch some: python -m mlx_trm.data fetch NAME [NAME ...]")
        return
    from mlx_trm.datasets.fetch import FetchOptions, fetch
    from mlx_trm.tasks.fetch_http import Patience

    options = FetchOptions(
        force=args.force,
        accept_changed=args.accept_changed,
        use_hub=not args.no_hub,
        quiet=args.quiet or not sys.stderr.isatty(),
        patience=Patience(timeout=args.timeout),
    )
    for source in sources:
        progress = DownloadProgress(args.quiet)
        try:
            result = fetch(source.name, options, progress.show)
        finally:
            progress.close()
        what = "fetched" if result.downloaded else "is there already and was checked"
        total = sum(size for size, _ in result.files.values())
        count = f"{len(result.files):,} files, {display.size(total)}"
        print(f"{source.name}: {what}: {count}, in {result.place}")
    for line in dict.fromkeys(line for source in sources for line in use_lines(source)):
        print(line)


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
        if source.targets == ("train.csv", "test.csv"):
            place = fetched_folder(source.name)
            words += [
                f"task.train_file={place / 'train.csv'}",
                f"task.test_file={place / 'test.csv'}",
            ]
        lines.append("use it: " + shlex.join(words))
        needed = [other.name for other in SOURCES.values() if preset in other.presets]
        missing = [name for name in needed if not is_fetched(name)]
        if missing and len(needed) > 1:
            lines[-1] += f"  (needs {', '.join(missing)} too: python -m mlx_trm.data fetch "
            lines[-1] += " ".join(missing) + ")"
    return lines


class DownloadProgress:
    """Shows a download: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool = False, seconds_between_lines: float = 5.0) -> None:
        """Start the display.

        Args:
            quiet: show nothing.
            seconds_between_lines: how often a line is printed where there is no terminal.
        """
        self._quiet = quiet
        self._terminal = not quiet and sys.stderr.isatty()
        self._between = seconds_between_lines
        self._last = time.monotonic()
        self._bar: Any = None
        self._label: Optional[str] = None

    def show(self, label: str, done: int, total: Optional[int]) -> None:
        """Show that so many bytes of a file are here.

        Args:
            label: the file.
            done: bytes that are here.
            total: bytes of the whole file, where known.
        """
        if self._terminal:
            if label != self._label:
                self.close()
                self._bar = tqdm(desc=label, total=total, initial=done, unit="B", unit_scale=True,
                                 dynamic_ncols=True, leave=False)  # fmt: skip
            self._bar.total = total
            self._bar.update(done - self._bar.n)
        elif not self._quiet and time.monotonic() - self._last >= self._between:
            self._last = time.monotonic()
            of = "" if total is None else f" of {display.size(total)}"
            LOGGER.info("%s: %s%s", label, display.size(done), of)
        self._label = label

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
