"""ARC's grids as a person sees them: on a line, in a terminal, as a board for pictures."""

from functools import lru_cache
from typing import Any, Dict, List, Optional

import numpy as np

from mlx_trm.datasets.sources import SAMPLES
from mlx_trm.tasks.arc import grids as arc_grids
from mlx_trm.tasks.arc.files import find_subset, read_subset
from mlx_trm.tasks.base import Task
from mlx_trm.tasks.board import Board, is_unanswered, make_board

_SAMPLE = "arc_tiny"


@lru_cache(maxsize=None)
def read_sample() -> List[np.ndarray]:
    """Read the test inputs of the package's tasks, (H, W) uint8 colours."""
    tasks = read_subset(find_subset(SAMPLES / _SAMPLE, "evaluation"), arc_grids.CANVAS, False)
    return [given for each in tasks for given, _ in each.pairs["test"]]


# pylint: disable-next=abstract-method
class GridView(Task):
    """A task whose tokens are a grid of colours on a square canvas of ``config.max_grid_size``."""

    def equal(self, tokens: np.ndarray, labels: np.ndarray) -> bool:
        """Say whether the grids cut out of two rows of tokens are the same, as in the votes."""
        size = self.config.max_grid_size
        return np.array_equal(arc_grids.crop(tokens, size), arc_grids.crop(labels, size))

    def format(self, tokens: np.ndarray) -> str:
        """Write (S,) tokens on one line: the grid as rows of digits, ``012/345``."""
        return arc_grids.format_grid(arc_grids.cut_visible(tokens, self.config.max_grid_size))

    def describe_editor(self) -> Dict[str, Any]:
        """Let a task of the model's data be picked, or a grid be written."""
        hint = "Pick a task, or write a grid as rows of digits: 012/345."
        return {"kind": "names", "hint": hint}

    def draw_example(self, rng: np.random.Generator) -> str:
        """Give a task of the data, or where these are not here a grid of the package's tasks."""
        names = self.list_names()
        if names:
            return names[rng.integers(len(names))]
        most = self.config.max_grid_size
        grids = [grid for grid in read_sample() if max(grid.shape) <= most]
        return arc_grids.format_grid(grids[rng.integers(len(grids))])

    @property
    def token_names(self) -> List[str]:
        """Padding, what ends a grid's rows and columns, and the colours."""
        return ["padding", "end", *map(str, range(arc_grids.COLORS))]

    def render_step(
        self,
        tokens: np.ndarray,
        before: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        color: bool = False,
    ) -> str:
        """Draw a grid, two characters a cell, and say below it if its shape is wrong.

        Args:
            tokens: (S,) what is drawn, cut out of its canvas.
            before: (S,) the answer of the step before; what changed is marked with ``+``.
            inputs: not used.
            labels: (S,) the answer; cells that differ are marked with ``!``.
            color: use ANSI colours.
        """
        del inputs
        return arc_grids.draw_answer(
            self._visible(tokens), self._visible(labels), color, self._visible(before)
        )

    def board(
        self,
        tokens: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        before: Optional[np.ndarray] = None,
    ) -> Board:
        """Give the grid, cut out of its canvas, in ARC's colours. Arguments as of every task."""
        grid = self._visible(tokens)
        changed, wrong = (
            arc_grids.differing_cells(grid, self._visible(other)) for other in (before, labels)
        )
        if is_unanswered(tokens, inputs):
            wrong[:] = False
        nothing = np.full(grid.shape, "", dtype=object)
        colors = arc_grids.paint(grid)
        return make_board(nothing, colors, None, changed, wrong, text=self.format(tokens))

    def place_values(self, values: np.ndarray, tokens: np.ndarray) -> Optional[np.ndarray]:
        """Cut (S,) values out of the canvas as :meth:`board` cuts the grid of (S,) tokens."""
        size = self.config.max_grid_size
        top, left, height, width = arc_grids.find_visible(tokens, size)
        canvas = np.asarray(values).reshape(size, size)
        return canvas[top : top + height, left : left + width]

    def _visible(self, tokens: Any) -> Any:
        """Cut the grid out of (S,) tokens for a person; None stays None."""
        size = self.config.max_grid_size
        return None if tokens is None else arc_grids.cut_visible(tokens, size)

    def image(self, tokens: np.ndarray, inputs: Optional[np.ndarray] = None) -> np.ndarray:
        """Paint the grid in ARC's colours, (H, W, 3) uint8."""
        del inputs
        return arc_grids.paint(arc_grids.cut_visible(tokens, self.config.max_grid_size))
