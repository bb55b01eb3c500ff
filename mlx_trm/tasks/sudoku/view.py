"""A Sudoku grid in a terminal: the lines around its boxes."""

from typing import Sequence

from mlx_trm.tasks.sudoku.solver import box_shape


def frame_cells(cells: Sequence[str], size: int) -> str:
    """Put cells between the lines of the boxes.

    Args:
        cells: S of them row by row, each two characters wide, colour codes apart.
        size: rows of the grid.
    """
    box_rows, box_cols = box_shape(size)
    line = "─" * (2 * box_cols + 1)
    rules = [
        left + middle.join([line] * (size // box_cols)) + right
        for left, middle, right in ("┌┬┐", "├┼┤", "└┴┘")
    ]
    lines = [rules[0]]
    for row in range(size):
        if row and row % box_rows == 0:
            lines.append(rules[1])
        boxes = [
            "".join(cells[row * size + col : row * size + col + box_cols])
            for col in range(0, size, box_cols)
        ]
        lines.append("│" + " │".join(boxes) + " │")
    return "\n".join(lines + [rules[2]])
