"""A Sudoku grid in a terminal, with the lines around its boxes, and typed on a page."""

from typing import Any, Dict, Sequence

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


def describe_digits(size: int, symbols: Sequence[str]) -> Dict[str, Any]:
    """Say how a page lets a Sudoku be typed, as :meth:`TextForm.describe_editor` does.

    Args:
        size: rows of the grid.
        symbols: its digits.
    """
    return {
        "kind": "digits",
        "hint": "One line or rows, . or 0 for a blank.",
        "label": "Sudoku, a digit a cell",
        "size": size,
        "boxes": list(box_shape(size)),
        "symbols": list(symbols),
    }
