"""Makes mazes: seeded, each with a way from start to goal that takes many steps.

Random grids are drawn in chunks, those that are not winding enough are dropped, and start and goal
are put far apart in the others.
"""

import hashlib
from math import isqrt
from typing import List, NamedTuple, Optional, Sequence, Set

import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.tasks.maze.paths import (
    GOAL,
    OPEN,
    START,
    WALL,
    distances,
    mark_all_shortest_paths,
    shortest_paths,
)
from mlx_trm.tasks.symmetries import dihedral_transform

# Raised whenever the same seed gives other mazes.
GENERATOR_VERSION = 1

STYLES = ("walls", "loops", "mixed")

# Share of cells that are walls, at least and at most. Below, there are ways everywhere; above, the
# open cells fall apart; between, shortest paths are longest.
_DENSITY = (0.32, 0.42)
# Share of the walls between the rooms of a perfect maze that are opened, at least and at most.
_OPENED = (0.02, 0.12)

_CHUNK_CELLS = 1 << 20
# So many grids in a row without a new maze, or for each maze, and no more are looked for.
_PATIENCE = 20_000
_GRIDS_PER_MAZE = 5_000


class MazeSet(NamedTuple):
    """Mazes with a shortest path.

    Attributes:
        inputs: (n, S) uint8 tokens.
        labels: (n, S) uint8 tokens, the path marked.
        lengths: (n,) steps of the path.
    """

    inputs: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray

    def take(self, rows: np.ndarray) -> "MazeSet":
        """Select mazes."""
        return MazeSet(self.inputs[rows], self.labels[rows], self.lengths[rows])


def default_min_path(size: int) -> int:
    """Return the least steps from S to G in generated mazes, where the settings leave it open.

    It is 111 at 30x30, where Maze-Hard keeps paths of more than 110, and about as rare elsewhere.
    """
    return min(isqrt(111**2 * size**3 // 30**3), 37 * size // 10)


def longest_path(size: int) -> int:
    """Return a number of steps that no shortest path in a grid exceeds.

    A shortest path touches itself nowhere. Counting the borders between its cells and others from
    both sides gives 6 P <= 4 size^2 + 4 size - 2 for its P cells; at 3x3 that is exact.
    """
    return (4 * size * size + 4 * size - 2) // 6 - 1


def maze_keys(inputs: np.ndarray) -> List[bytes]:
    """Return a key for each of (n, S) mazes: equal for those that can be turned or flipped into
    one another."""
    size = isqrt(inputs.shape[1])
    grids = np.asarray(inputs, dtype=np.uint8).reshape(-1, size, size)
    turned = [np.ascontiguousarray(dihedral_transform(grids, number)) for number in range(8)]
    return [
        hashlib.blake2b(min(form[row].tobytes() for form in turned), digest_size=16).digest()
        for row in range(len(grids))
    ]


def random_walls(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw grids whose cells are walls at random, each grid with a density of its own.

    Returns:
        (count, S) bool: the free cells.
    """
    low, high = _DENSITY
    density = low + (high - low) * rng.random((count, 1))
    return np.asarray(rng.random((count, size * size)) >= density)


def random_loops(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw perfect mazes by depth-first search, then open some of their walls.

    Rooms are every other cell of every other row. Where ``size`` is even, a row and a column on a
    random side stay walls.

    Returns:
        (count, S) bool: the free cells.
    """
    rooms = (size + 1) // 2
    free = _perfect(count, rooms, rng)
    low, high = _OPENED
    opened = rng.random(free.shape) < low + (high - low) * rng.random((count, 1, 1))
    line = np.arange(2 * rooms - 1)
    free |= opened & ((line[:, None] + line) % 2 == 1)  # the walls between two rooms
    return _placed(free, size, rng).reshape(count, size * size)


def _perfect(count: int, rooms: int, rng: np.random.Generator) -> np.ndarray:
    """Draw mazes with exactly one way between any two of (rooms, rooms) rooms, side by side.

    Returns:
        (count, w, w) bool, w = 2 * rooms - 1: the rooms, and the walls between them that are open.
    """
    wide, width = rooms + 2, 2 * rooms + 1
    free = np.zeros((count, width * width), dtype=bool)
    # Rooms are numbered in a grid with a border of rooms that count as seen: nobody goes there.
    number = np.arange(wide * wide)
    inside = (number // wide % (wide - 1) > 0) & (number % wide % (wide - 1) > 0)
    seen = np.tile(~inside, (count, 1))
    cell = (2 * (number // wide) - 1) * width + 2 * (number % wide) - 1
    around = np.array([-wide, -1, 1, wide])
    beside = np.array([-width, -1, 1, width])
    way = np.zeros((count, rooms * rooms), dtype=np.int64)
    depth = np.zeros(count, dtype=np.int64)
    rows = np.arange(count)
    first = rng.integers(rooms * rooms, size=count)
    way[:, 0] = (first // rooms + 1) * wide + first % rooms + 1
    seen[rows, way[:, 0]] = free[rows, cell[way[:, 0]]] = True
    for _ in range(2 * rooms * rooms - 2):  # each room but the first is entered and left once
        room = way[rows, depth]
        unseen = ~seen[rows[:, None], room[:, None] + around]
        choice = (rng.random((count, 4)) * unseen).argmax(axis=1)
        on = np.flatnonzero(unseen.any(axis=1))
        depth -= 1
        depth[on] += 2
        entered = room[on] + around[choice[on]]
        way[on, depth[on]] = entered
        seen[on, entered] = free[on, cell[entered]] = True
        free[on, cell[room[on]] + beside[choice[on]]] = True
    return np.reshape(free, (count, width, width))[:, 1:-1, 1:-1]


def _placed(free: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Put (n, w, w) grids into a random corner of larger ones, (n, size, size)."""
    width = free.shape[1]
    grids = np.zeros((len(free), size, size), dtype=bool)
    corner = rng.integers(size - width + 1, size=(len(free), 2))
    for down in range(size - width + 1):
        for right in range(size - width + 1):
            here = (corner == (down, right)).all(axis=1)
            grids[here, down : down + width, right : right + width] = free[here]
    return grids


def place_ends(free: np.ndarray, min_path: int, rng: np.random.Generator) -> np.ndarray:
    """Put start and goal into grids where they can be far enough apart; drop the others.

    Args:
        free: (n, S) bool: the free cells.
        min_path: steps between start and goal, at least.
        rng: decides everything.

    Returns:
        (m, S) uint8 tokens of the grids that are left, in their order.
    """
    end = _random_cell(free, rng)
    end = distances(free, end).argmax(axis=1)  # the far end of the place that was hit
    for _ in range(2):  # the first end is an extreme one; it is drawn again as seen from the second
        other, far = end, distances(free, end) >= max(1, min_path)
        left = far.any(axis=1)
        free, other, far = free[left], other[left], far[left]
        end = _random_cell(far, rng)
    swap = rng.random(len(free)) < 0.5
    inputs = np.where(free, OPEN, WALL).astype(np.uint8)
    rows = np.arange(len(inputs))
    inputs[rows, np.where(swap, end, other)] = START
    inputs[rows, np.where(swap, other, end)] = GOAL
    return inputs


def leave_one_path(inputs: np.ndarray) -> np.ndarray:
    """Wall up the shortest paths of (n, S) mazes but one.

    What lies on another shortest path and not on this one becomes wall; longer ways stay.
    """
    labels, _ = shortest_paths(inputs)
    other = mark_all_shortest_paths(inputs) & (labels == OPEN)
    return np.asarray(np.where(other, np.uint8(WALL), inputs))


def _random_cell(wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (n,) one of the cells that are True in each row of (n, S); 0 where there is none."""
    return np.asarray((rng.random(wanted.shape) * wanted).argmax(axis=1))


def generate_sets(
    counts: Sequence[int],
    size: int,
    rng: np.random.Generator,
    style: str = "mixed",
    min_path: Optional[int] = None,
    unique: bool = False,
    exclude: Sequence[bytes] = (),
) -> List[MazeSet]:
    """Make sets of mazes, such as a training and a test set, that share nothing.

    Args:
        counts: how many mazes each set gets.
        size: rows and columns.
        rng: decides everything.
        style: ``walls``, ``loops``, or ``mixed``: by turns.
        min_path: steps from start to goal, at least; None: :func:`default_min_path`.
        unique: only mazes with exactly one shortest path.
        exclude: :func:`maze_keys` of mazes to keep out of all sets.

    Returns:
        One set for each count. No maze can be turned or flipped into another.

    Raises:
        DataError: if so many different mazes are not found.
    """
    least = default_min_path(size) if min_path is None else min_path
    seen = set(exclude)
    sets = []
    for count in counts:
        parts = [count] if style != "mixed" else [(count + 1) // 2, count // 2]
        names = [style] if style != "mixed" else ["walls", "loops"]
        inputs = np.empty((count, size * size), dtype=np.uint8)
        for turn, (name, number) in enumerate(zip(names, parts)):
            inputs[turn :: len(parts)] = _different(number, size, rng, name, least, unique, seen)
        labels, lengths = shortest_paths(inputs)
        sets.append(MazeSet(inputs, labels, lengths))
    return sets


def _different(
    count: int,
    size: int,
    rng: np.random.Generator,
    style: str,
    min_path: int,
    unique: bool,
    seen: Set[bytes],
) -> np.ndarray:
    """Make (count, S) mazes that have not been seen, and add them to those."""
    draw = random_walls if style == "walls" else random_loops
    chunk = max(1, min(1024, _CHUNK_CELLS // (size * size)))
    found = np.empty((count, size * size), dtype=np.uint8)
    have = drawn = in_vain = 0
    while have < count:
        if in_vain >= _PATIENCE or drawn >= _PATIENCE + _GRIDS_PER_MAZE * count:
            paths = "one shortest path" if unique else "a path"
            raise DataError(
                f"{size}x{size} mazes ({style}) with {paths} of at least {min_path} steps: only "
                f"{have} different ones found, {count} wanted; ask for fewer, a lower "
                "min_path, or another style"
            )
        mazes = place_ends(draw(chunk, size, rng), min_path, rng)
        if unique:
            mazes = leave_one_path(mazes)
        drawn, in_vain = drawn + chunk, in_vain + chunk
        for maze, key in zip(mazes, maze_keys(mazes)):
            if have < count and key not in seen:
                seen.add(key)
                found[have] = maze
                have, in_vain = have + 1, 0
    return found
