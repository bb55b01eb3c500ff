"""Makes the bundled ARC-format puzzles: grids of at most 5x5, simple rules, all our own.

``python data/arc_samples.py FOLDER`` writes them, the same bytes for the same seed.

A kind is a function that takes what is particular to a task (colours, a direction) and returns a
function that draws a pair of grids. Each kind has two training tasks and an evaluation task, which
differ in these particulars. Many an evaluation task is thus a training task turned or in other
colours; but no pair of grids in any of the files can be turned into another one by turning,
flipping and renaming colours.
"""

import json
import sys
from pathlib import Path
from typing import Callable, Dict, List, Set, Tuple, Union

import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.tasks.arc.grids import COLORS
from mlx_trm.tasks.symmetries import dihedral_transform

Pair = Tuple[np.ndarray, np.ndarray]
PairMaker = Callable[[np.random.Generator], Pair]
Tasks = Dict[str, List[Pair]]

SIDE = 5
DEMONSTRATIONS, TESTS = 4, 2
SUBSETS = ("training", "training", "evaluation")  # of the variants 0, 1 and 2 of each kind

_TRIES = 1000


def recolour(colors: np.ndarray, variant: int) -> PairMaker:
    """Three colours change places."""
    del variant
    table = np.arange(COLORS, dtype=np.uint8)
    table[colors] = np.roll(colors, 1)

    def pair(rng: np.random.Generator) -> Pair:
        grid = sprinkle(rng, (SIDE, SIDE), colors, 0.5)
        return grid, table[grid]

    return pair


def remove(colors: np.ndarray, variant: int) -> PairMaker:
    """One colour vanishes."""
    del variant

    def pair(rng: np.random.Generator) -> Pair:
        grid = sprinkle(rng, (SIDE, SIDE), np.append(draw_colors(rng, 1), colors[0]), 0.5)
        return grid, np.where(grid == colors[0], 0, grid)

    return pair


def ground(colors: np.ndarray, variant: int) -> PairMaker:
    """What is black takes a colour."""
    del variant

    def pair(rng: np.random.Generator) -> Pair:
        grid = sprinkle(rng, (SIDE, SIDE), draw_colors(rng, 2), 0.4)
        return grid, np.where(grid == 0, colors[0], grid)

    return pair


def frame(colors: np.ndarray, variant: int) -> PairMaker:
    """The outermost cells take a colour."""
    del variant

    def pair(rng: np.random.Generator) -> Pair:
        grid = sprinkle(rng, (SIDE, SIDE), draw_colors(rng, 2), 0.4)
        framed = np.full_like(grid, colors[0])
        framed[1:-1, 1:-1] = grid[1:-1, 1:-1]
        return grid, framed

    return pair


def fill(colors: np.ndarray, variant: int) -> PairMaker:
    """The inside of a rectangle takes a colour."""
    del variant

    def pair(rng: np.random.Generator) -> Pair:
        wall = draw_colors(rng, 1)
        height, width = rng.integers(3, SIDE + 1, 2).tolist()
        top, left = rng.integers(0, [SIDE - height + 1, SIDE - width + 1]).tolist()
        grid = sprinkle(rng, (SIDE, SIDE), wall, 0.1)
        grid[top : top + height, left : left + width] = wall[0]
        inside = (slice(top + 1, top + height - 1), slice(left + 1, left + width - 1))
        grid[inside] = 0
        filled = grid.copy()
        filled[inside] = colors[0]
        return grid, filled

    return pair


def gravity(colors: np.ndarray, variant: int) -> PairMaker:
    """All cells fall to one side."""
    del colors

    def pair(rng: np.random.Generator) -> Pair:
        grid = sprinkle(rng, (SIDE, SIDE), draw_colors(rng, 1), 0.4)
        return turned(variant, grid, np.sort(grid, axis=0))

    return pair


def extend(colors: np.ndarray, variant: int) -> PairMaker:
    """The cells of one side are copied to all rows or columns."""
    del colors

    def pair(rng: np.random.Generator) -> Pair:
        grid = np.zeros((SIDE, SIDE), dtype=np.uint8)
        grid[0] = sprinkle(rng, (1, SIDE), draw_colors(rng, 3), 0.6)
        return turned(variant, grid, np.repeat(grid[:1], SIDE, axis=0))

    return pair


def line(colors: np.ndarray, variant: int) -> PairMaker:
    """A line of one colour is drawn through every dot, from edge to edge."""

    def pair(rng: np.random.Generator) -> Pair:
        grid = np.zeros((SIDE, SIDE), dtype=np.uint8)
        rows = np.argsort(rng.random(SIDE), kind="stable")[:2]
        grid[rows, rng.integers(0, SIDE, 2)] = draw_colors(rng, 1)
        crossed = (grid == 0) & grid.any(axis=1, keepdims=True)
        return turned(variant, grid, np.where(crossed, colors[0], grid))

    return pair


def complete(colors: np.ndarray, variant: int) -> PairMaker:
    """One half of a mirror image is there; the other one is added."""
    del colors

    def pair(rng: np.random.Generator) -> Pair:
        grid = np.zeros((SIDE, SIDE), dtype=np.uint8)
        half = (SIDE + 1) // 2
        grid[:half] = sprinkle(rng, (half, SIDE), draw_colors(rng, 2), 0.5)
        return turned(variant, grid, np.maximum(grid, grid[::-1]))

    return pair


def crop(colors: np.ndarray, variant: int) -> PairMaker:
    """Three by three cells are cut out of one corner."""
    del colors

    def pair(rng: np.random.Generator) -> Pair:
        grid = sprinkle(rng, (SIDE, SIDE), draw_colors(rng, 2), 0.5)
        return turned(variant, grid, grid[:3, :3])

    return pair


def mirror(colors: np.ndarray, variant: int) -> PairMaker:
    """The grid is flipped: left and right, over the diagonal, up and down."""
    del colors

    def pair(rng: np.random.Generator) -> Pair:
        grid = sprinkle(rng, (SIDE, SIDE), draw_colors(rng, 2), 0.4)
        return grid, dihedral_transform(grid, (4, 6, 5)[variant])

    return pair


def largest(colors: np.ndarray, variant: int) -> PairMaker:
    """Of three bars only the longest stays, or only the shortest."""
    del colors

    def pair(rng: np.random.Generator) -> Pair:
        grid, kept = np.zeros((2, SIDE, SIDE), dtype=np.uint8)
        lengths = (np.argsort(rng.random(SIDE), kind="stable")[:3] + 1).tolist()
        stays = min(lengths) if variant == 1 else max(lengths)
        for row, length, color in zip((0, 2, 4), lengths, draw_colors(rng, 3)):
            start = int(rng.integers(0, SIDE - length + 1))
            grid[row, start : start + length] = color
            if length == stays:
                kept[row] = grid[row]
        return turned(variant // 2, grid, kept)

    return pair


KINDS: Tuple[Callable[[np.ndarray, int], PairMaker], ...] = (
    recolour, remove, ground, frame, fill, gravity, extend, line, complete, crop, mirror, largest
)  # fmt: skip


def draw_colors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw different colours, none of them black."""
    order = np.argsort(rng.random(COLORS - 1), kind="stable")
    return (order[:count] + 1).astype(np.uint8)


def sprinkle(
    rng: np.random.Generator, shape: Tuple[int, int], colors: np.ndarray, share: float
) -> np.ndarray:
    """Draw a grid in which each cell has one of the colours with probability ``share``."""
    chosen = colors[rng.integers(0, len(colors), shape)]
    return np.where(rng.random(shape) < share, chosen, 0).astype(np.uint8)


def turned(quarters: int, first: np.ndarray, second: np.ndarray) -> Pair:
    """Turn both grids of a pair."""
    return np.rot90(first, quarters), np.rot90(second, quarters)


def pair_key(pair: Pair) -> bytes:
    """Return what is equal for pairs that turning, flipping and renaming colours (not black) join.

    Args:
        pair: input and output, (H, W) uint8.
    """
    found = []
    for number in range(8):
        grids = [dihedral_transform(grid, number) for grid in pair]
        cells = np.concatenate([[0], *(grid.ravel() for grid in grids)])
        # Colours are numbered in the order in which they come; black always comes first.
        _, first, names = np.unique(cells, return_index=True, return_inverse=True)
        numbers = np.argsort(np.argsort(first)).astype(np.uint8)[names.ravel()]
        found.append(bytes(side for grid in grids for side in grid.shape) + numbers.tobytes())
    return min(found)


def make_tasks(seed: int = 0) -> Dict[str, Tasks]:
    """Make all tasks.

    Args:
        seed: decides everything; that of the bundled files is 0.

    Returns:
        For ``training`` and ``evaluation``, the pairs of each task by its identifier: first the
        demonstrations, then the tests.

    Raises:
        DataError: if a kind does not have so many different pairs.
    """
    seen: Set[bytes] = set()
    subsets: Dict[str, Tasks] = {subset: {} for subset in SUBSETS}
    for number, kind in enumerate(KINDS):
        colors = draw_colors(np.random.default_rng([seed, number]), 9).reshape(3, 3)
        for variant, subset in enumerate(SUBSETS):
            rng = np.random.default_rng([seed, number, variant])
            name = "".join(f"{part:04x}" for part in rng.integers(0, 2**16, 2).tolist())
            make = kind(colors[variant], variant)
            pairs = subsets[subset][name] = []
            for _ in range(_TRIES):
                pair = make(rng)
                key = pair_key(pair)
                if key not in seen and pair[1].any() and not np.array_equal(*pair):
                    seen.add(key)
                    pairs.append(pair)
                if len(pairs) == DEMONSTRATIONS + TESTS:
                    break
            else:
                raise DataError(f"{kind.__name__}: too few different pairs; try another seed")
    return subsets


def write_samples(folder: Union[str, Path], seed: int = 0) -> None:
    """Write the challenges and solutions of both subsets, four files, one task a line.

    Args:
        folder: an existing one.
        seed: that of the bundled files is 0.
    """
    for subset, tasks in make_tasks(seed).items():
        challenges, solutions = [], []
        for name, pairs in sorted(tasks.items()):
            grids = [{"input": a.tolist(), "output": b.tolist()} for a, b in pairs]
            tests = grids[DEMONSTRATIONS:]
            task = {
                "train": grids[:DEMONSTRATIONS],
                "test": [{"input": grid["input"]} for grid in tests],
            }
            challenges.append((name, task))
            solutions.append((name, [grid["output"] for grid in tests]))
        for what, content in (("challenges", challenges), ("solutions", solutions)):
            lines = (
                f'"{name}":' + json.dumps(value, separators=(",", ":")) for name, value in content
            )
            text = "{\n" + ",\n".join(lines) + "\n}\n"
            (Path(folder) / f"arc_tiny_{subset}_{what}.json").write_bytes(text.encode())


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python data/arc_samples.py FOLDER, an existing one")
    write_samples(sys.argv[1])
