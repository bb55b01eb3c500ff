"""Paths in mazes: breadth-first search and checks of paths, many mazes at a time.

Tokens: 0 padding, 1 ``#`` wall, 2 space (open), 3 ``S`` start, 4 ``G`` goal, 5 ``o`` path. A step
goes to one of the four neighbours.
"""

from typing import Dict, NamedTuple, Tuple

import numpy as np

from mlx_trm.tasks.text import place_name

WALL, OPEN, START, GOAL, PATH = 1, 2, 3, 4, 5
UNREACHED = -1

# Where shortest paths differ, the one is taken that, seen from the goal, goes up, left, right, down
# in this order of preference. It is what makes the label of a maze unique.
_PREFERENCE = ((-1, 0), (0, -1), (0, 1), (1, 0))


class Judged(NamedTuple):
    """What predictions of n mazes are.

    Attributes:
        steps: (n,) of the path that is marked; UNREACHED where the marks are no path.
        shortest: (n,) of a shortest path; UNREACHED where there is none.
    """

    steps: np.ndarray
    shortest: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """(n,) bool: the marks are a path."""
        return np.asarray(self.steps != UNREACHED)

    @property
    def optimal(self) -> np.ndarray:
        """(n,) bool: the marks are a path, and none is shorter."""
        return np.asarray(self.valid & (self.steps == self.shortest))


def grid_size(cells: int) -> int:
    """Return the rows of a square grid with so many cells."""
    return int(np.sqrt(cells) + 0.5)


def distances(free: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Search each maze breadth first.

    The waves of all mazes advance together, and each cell is looked at once: the work grows with
    the cells, not with the length of the paths.

    Args:
        free: (n, S) bool: the cells that may be stepped on.
        starts: (n,) the cell of each maze where it begins; that it is free is not checked.

    Returns:
        (n, S) int32: steps from the start, UNREACHED where there is no way.
    """
    count, cells = free.shape
    size = grid_size(cells)
    width = size + 2  # with a border that is never free
    steps = np.full(count * width * width, UNREACHED, dtype=np.int32)
    shut = np.pad(~free.reshape(count, size, size), ((0, 0), (1, 1), (1, 1)), constant_values=True)
    shut = shut.reshape(-1)
    starts = np.asarray(starts, dtype=np.int64)
    front = np.arange(count) * width * width + (starts // size + 1) * width + starts % size + 1
    around = np.array([[-width], [-1], [1], [width]])
    last = np.empty(len(steps), dtype=np.int64)
    shut[front] = True
    steps[front] = step = 0
    while len(front):
        step += 1
        reached = (front + around).reshape(-1)
        reached = reached[~shut[reached]]
        order = np.arange(len(reached))
        last[reached] = order  # of a cell that is reached twice one stays
        front = reached[last[reached] == order]
        shut[front] = True
        steps[front] = step
    return steps.reshape(count, width, width)[:, 1:-1, 1:-1].reshape(count, cells)


def find_token(tokens: np.ndarray, token: int) -> np.ndarray:
    """Find the first cell that holds a token in each of (n, S) mazes: (n,), 0 where none does."""
    return np.asarray((tokens == token).argmax(axis=1))


def shortest_paths(inputs: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Mark a shortest path in each maze.

    Args:
        inputs: (n, S) tokens, one start and one goal each, without marks.

    Returns:
        (n, S) uint8 tokens with the marks, and (n,) steps, UNREACHED (and no marks) where there is
        no path. Of several shortest paths it is always the same one.
    """
    labels = np.array(inputs, dtype=np.uint8)
    rows = np.arange(len(labels))
    goal = find_token(labels, GOAL)
    away = distances(labels != WALL, find_token(labels, START))
    lengths = away[rows, goal]
    size = grid_size(labels.shape[1])
    left = np.flatnonzero(lengths > 1)
    at = goal[left]
    while len(left):
        at = _step_back(away[left], at, size)
        labels[left, at] = PATH
        more = away[left, at] > 1
        left, at = left[more], at[more]
    return labels, lengths


def _step_back(away: np.ndarray, at: np.ndarray, size: int) -> np.ndarray:
    """Go, in each maze, from (n,) cells to a neighbour that is one step nearer to the start."""
    rows = np.arange(len(at))
    wanted = away[rows, at] - 1
    line, column = at // size, at % size
    found = np.full(len(at), -1, dtype=np.int64)
    for down, right in _PREFERENCE:
        inside = (line + down >= 0) & (line + down < size)
        inside &= (column + right >= 0) & (column + right < size)
        cell = np.where(inside, at + down * size + right, at)
        found = np.where((found < 0) & (away[rows, cell] == wanted), cell, found)
    return found


def mark_all_shortest_paths(inputs: np.ndarray) -> np.ndarray:
    """Mark the cells of all shortest paths, from start to goal, in each of (n, S) mazes.

    These are the cells whose distances to start and goal add up to the length of the path.

    Returns:
        (n, S) bool; all False where there is no path.
    """
    rows = np.arange(len(inputs))
    free = np.asarray(inputs) != WALL
    goal = find_token(inputs, GOAL)
    away, back = distances(free, find_token(inputs, START)), distances(free, goal)
    shortest = away[rows, goal][:, None]
    return np.asarray((away != UNREACHED) & (back != UNREACHED) & (away + back == shortest))


def judge(inputs: np.ndarray, tokens: np.ndarray) -> Judged:
    """Judge predictions by the rules alone.

    The marks are a path where the maze is kept (only open cells are marked), and a search over
    start, marks and goal needs all the marks to reach the goal: so none is stray, and none makes a
    short cut.

    Args:
        inputs: (n, S) mazes; without exactly one start and goal nothing is a path.
        tokens: (n, S) predictions.

    Returns:
        The lengths of the marked paths and of the shortest ones.
    """
    inputs, tokens = np.asarray(inputs), np.asarray(tokens)
    rows = np.arange(len(inputs))
    start, goal = find_token(inputs, START), find_token(inputs, GOAL)
    marked = tokens == PATH
    kept = np.where(marked, inputs == OPEN, tokens == inputs).all(axis=1)
    track = marked.copy()
    track[rows, start] = track[rows, goal] = True
    steps = distances(track, start)[rows, goal]
    ends = ((inputs == START).sum(axis=1) == 1) & ((inputs == GOAL).sum(axis=1) == 1)
    valid = kept & ends & (steps == marked.sum(axis=1) + 1)
    shortest = distances(inputs != WALL, start)[rows, goal]
    return Judged(np.where(valid, steps, UNREACHED), shortest)


def solve_mazes(inputs: np.ndarray) -> Tuple[np.ndarray, Dict[int, str]]:
    """Check mazes and mark a shortest path in each.

    Args:
        inputs: (n, S) tokens of any kind.

    Returns:
        (n, S) uint8 labels, as of :func:`shortest_paths`, and what is wrong with the mazes that
        have none, by row.
    """
    labels = np.array(inputs, dtype=np.uint8)
    size = grid_size(labels.shape[1])
    problems = {}
    wrong = (labels < WALL) | (labels > GOAL)
    bad = wrong.any(axis=1)
    for token in (START, GOAL):
        bad |= (labels == token).sum(axis=1) != 1
    for row in np.flatnonzero(bad):
        problems[int(row)] = _token_problem(labels[row], size)
    good = np.flatnonzero(~bad)
    labels[good], lengths = shortest_paths(labels[good])
    for row in good[lengths == UNREACHED]:
        start, goal = (place_name(int(np.argmax(labels[row] == t)), size) for t in (START, GOAL))
        problems[int(row)] = f"no way leads from S in {start} to G in {goal}"
    return labels, problems


def _token_problem(maze: np.ndarray, size: int) -> str:
    """Say what keeps (S,) tokens from being a maze with one start and one goal."""
    for token, name in ((START, "start S"), (GOAL, "goal G")):
        cells = np.flatnonzero(maze == token)
        if not len(cells):
            return f"the maze has no {name}"
        if len(cells) > 1:
            first, second = (place_name(int(cell), size) for cell in cells[:2])
            return f"the maze has {len(cells)} times {name[-1]}, in {first} and {second}"
    cell = int(np.argmax((maze < WALL) | (maze > GOAL)))
    symbol = "o" if maze[cell] == PATH else "?"
    return f"the maze has {symbol!r} in {place_name(cell, size)}; only an answer may"
