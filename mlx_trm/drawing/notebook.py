"""What a notebook shows: boards beside each other, and a place that is written to again."""

import sys
from html import escape
from typing import Any, Optional, Sequence, Tuple

from mlx_trm.drawing.scenes import Frame
from mlx_trm.tasks.board import Board


def in_notebook() -> bool:
    """Whether this is a notebook's kernel, which shows HTML; IPython in a terminal is not."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def boards_html(boards: Sequence[Tuple[str, Board]], note: str = "", pixels: int = 240) -> str:
    """Put boards beside each other, each below its title.

    Args:
        boards: titles and boards.
        note: said below them.
        pixels: the longer side of each.
    """
    figures = "".join(
        f'<div><div style="font-size:0.9em;margin-bottom:0.3em">{escape(title)}</div>'
        f"{board.svg(pixels)}</div>"
        for title, board in boards
    )
    row = f'<div style="display:flex;flex-wrap:wrap;gap:1.2em">{figures}</div>'
    return row + (
        f'<div style="font-size:0.9em;margin-top:0.4em">{escape(note)}</div>' if note else ""
    )


def frame_html(puzzle: Board, frame: Frame, total: Optional[int] = None) -> str:
    """Show a puzzle beside a step's answer.

    Args:
        puzzle: as it was given.
        frame: of the step.
        total: steps in all; None: they are not named.
    """
    title = f"step {frame.step}" + (f" of {total}" if total else "")
    return boards_html([("puzzle", puzzle), (title, frame.board)], describe_frame(frame))


def describe_frame(frame: Frame) -> str:
    """Say in a line what a step reached."""
    cells = "cell" if frame.changed == 1 else "cells"
    belief = "Q is no number" if frame.belief is None else f"Q {frame.belief:.3f}"
    said = [frame.verdict, belief, f"{frame.changed} {cells} changed (amber)"]
    wrong = int(frame.board.wrong.sum())
    if wrong:
        said.append(f"{wrong} wrong (framed red)")
    return ", ".join(part for part in said if part)


def frame_page(page: str, height: int = 680) -> str:
    """Put a whole page into a notebook, where nothing of either touches the other."""
    look = f"width:100%;height:{height}px;border:0"
    frame = f'<iframe srcdoc="{escape(page)}" sandbox="allow-scripts" style="{look}"'
    return f'<div>{frame} title="a puzzle being solved"></iframe></div>'


class LiveHTML:
    """A place in a notebook's output whose HTML is replaced; it needs no widgets."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._handle: Any = None

    def show(self, html: str) -> None:
        """Show HTML in place of what was shown before."""
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(html), display_id=True)
        else:
            self._handle.update(HTML(html))
