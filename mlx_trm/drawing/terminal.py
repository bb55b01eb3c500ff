"""What a terminal shows of a step: its grid, and beside it how the model's belief came about."""

import math
import os
import shutil
import sys
from typing import Sequence

from mlx_trm.tasks.text import ANSI, LEGEND

BAR = 10  # characters of a full bar
EIGHTHS = " ▏▎▍▌▋▊▉"
EXPLAINED = f"{LEGEND}  Q: the model's belief that its answer is right"


def side_by_side(left: str, right: str, gap: str = "   ") -> str:
    """Put two drawings beside each other; colour codes take no room."""
    ours, theirs = left.splitlines(), right.splitlines()
    width = max(len(ANSI.sub("", line)) for line in ours)
    height = max(len(ours), len(theirs))
    ours += [""] * (height - len(ours))
    theirs += [""] * (height - len(theirs))
    lines = (a + " " * (width - len(ANSI.sub("", a))) + gap + b for a, b in zip(ours, theirs))
    return "\n".join(line.rstrip() for line in lines)


def with_beliefs(drawn: str, beliefs: Sequence[float]) -> str:
    """Put the model's beliefs beside the drawing of the last step, as many as it has lines for.

    Args:
        drawn: of the last step.
        beliefs: Q of each step so far, 0 to 1.
    """
    room = max(1, len(drawn.splitlines()) - 1)
    first = max(0, len(beliefs) - room)
    lines = ["step  Q"]
    lines += [
        f"{number:4d}  {draw_bar(belief)} {belief:.2f}"
        for number, belief in enumerate(beliefs[first:], start=first + 1)
    ]
    return side_by_side(drawn, "\n".join(lines))


def draw_bar(share: float) -> str:
    """Draw a share, 0 to 1, as a bar of ten characters; what is no number is empty."""
    eighths = round(8 * BAR * min(1.0, max(0.0, share))) if math.isfinite(share) else 0
    full, rest = divmod(eighths, 8)
    bar = "█" * full + (EIGHTHS[rest] if rest else "")
    return bar.ljust(BAR, "·")


def use_color() -> bool:
    """Whether standard output is a terminal that may be coloured."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


class LiveText:
    """Lines of a terminal that are written over; elsewhere each follows the one before."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._height = 0

    def show(self, text: str) -> None:
        """Show text in place of what was shown before."""
        lines = text.splitlines()
        if not sys.stdout.isatty():
            lines.append("")
            self._height = 0
        # Up to the first line, and clear from there.
        back = f"\033[{self._height}F\033[J" if self._height else ""
        sys.stdout.write(back + "\n".join(lines) + "\n")
        sys.stdout.flush()
        self._height = self._measure(lines)

    def _measure(self, lines: Sequence[str]) -> int:
        """Count the screen's lines; 0 where text has scrolled out and cannot be written over."""
        if not sys.stdout.isatty():
            return 0
        columns, rows = shutil.get_terminal_size()
        widths = [len(ANSI.sub("", line)) for line in lines]
        height = sum(max(1, -(-width // max(1, columns))) for width in widths)
        return height if height < rows else 0
