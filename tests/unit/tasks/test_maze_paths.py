"""Breadth-first search in many mazes at once, labels, and what counts as a path."""

from collections import deque
from typing import Any, Dict, List

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.tasks.maze.files import parse_maze
from mlx_trm.tasks.maze.generator import random_loops, random_walls
from mlx_trm.tasks.maze.paths import (
    GOAL,
    OPEN,
    PATH,
    START,
    UNREACHED,
    WALL,
    distances,
    judge,
    mark_all_shortest_paths,
    shortest_paths,
    solve_mazes,
)
from mlx_trm.tasks.symmetries import dihedral_transform

MAZES = st.tuples(st.integers(3, 9), st.integers(0, 2**32 - 1), st.booleans())


def neighbours(cell: int, size: int) -> List[int]:
    """The cells above, left, right and below."""
    row, column = divmod(cell, size)
    places = [(row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column)]
    return [r * size + c for r, c in places if 0 <= r < size and 0 <= c < size]


def plain_search(free: np.ndarray, start: int) -> Dict[int, List[int]]:
    """Steps and number of shortest ways to each cell that is reached, with a queue."""
    size = int(len(free) ** 0.5)
    found = {start: [0, 1]}
    queue = deque([start])
    while queue:
        cell = queue.popleft()
        for other in neighbours(cell, size):
            if not free[other]:
                continue
            if other not in found:
                found[other] = [found[cell][0] + 1, 0]
                queue.append(other)
            if found[other][0] == found[cell][0] + 1:
                found[other][1] += found[cell][1]
    return found


def some_mazes(size: int, seed: int, loops: bool, count: int = 5) -> np.ndarray:
    """Mazes whose start and goal are anywhere, perhaps without a way between them."""
    rng = np.random.default_rng(seed)
    free = (random_loops if loops else random_walls)(count, size, rng)
    inputs = np.where(free, OPEN, WALL).astype(np.uint8)
    for maze in inputs:
        start, goal = rng.choice(size * size, 2, replace=False)
        maze[start], maze[goal] = START, GOAL
    return inputs


def grid(text: str) -> np.ndarray:
    """(1, S) tokens of a maze with ``/`` between its rows."""
    return parse_maze(text, text.count("/") + 1)[None]


@settings(deadline=None, max_examples=60)
@given(MAZES)
def test_distances_are_those_of_a_plain_search(drawn: Any) -> None:
    """Every cell of every maze, whatever the other mazes of the batch are."""
    size, seed, loops = drawn
    inputs = some_mazes(size, seed, loops)
    starts = (inputs == START).argmax(axis=1)
    found = distances(inputs != WALL, starts)
    assert found.dtype == np.int32
    for maze, start, steps in zip(inputs, starts, found):
        expected = plain_search(maze != WALL, int(start))
        assert steps.tolist() == [expected.get(c, [UNREACHED])[0] for c in range(size * size)]


@settings(deadline=None, max_examples=60)
@given(MAZES)
def test_labels_are_shortest_paths(drawn: Any) -> None:
    """As long as a plain search says, kept maze, connected marks; no path, no marks."""
    size, seed, loops = drawn
    inputs = some_mazes(size, seed, loops)
    labels, lengths = shortest_paths(inputs)
    judged = judge(inputs, labels)
    on_path = mark_all_shortest_paths(inputs)
    for row, maze in enumerate(inputs):
        start, goal = int((maze == START).argmax()), int((maze == GOAL).argmax())
        ways = plain_search(maze != WALL, start).get(goal)
        if ways is None:
            assert lengths[row] == UNREACHED and (labels[row] == maze).all()
            assert not judged.valid[row] and not on_path[row].any()
            continue
        assert lengths[row] == ways[0] == judged.steps[row] == judged.shortest[row]
        marks = np.flatnonzero(labels[row] == PATH)
        assert len(marks) == ways[0] - 1 and (maze[marks] == OPEN).all()
        changed = labels[row] != maze
        assert (np.flatnonzero(changed) == marks).all()
        assert (on_path[row].sum() == ways[0] + 1) == (ways[1] == 1)
        assert on_path[row][marks].all()


@settings(deadline=None, max_examples=40)
@given(MAZES, st.integers(0, 7))
def test_turned_paths_stay_optimal(drawn: Any, number: int) -> None:
    """A turn or flip changes neither the lengths nor what counts as a path."""
    size, seed, loops = drawn
    inputs = some_mazes(size, seed, loops)
    labels, lengths = shortest_paths(inputs)
    rng = np.random.default_rng(seed)
    broken = np.where(rng.random(labels.shape) < 0.02, PATH, labels)
    for tokens in (labels, broken):
        turned = [
            dihedral_transform(np.reshape(part, (-1, size, size)), number)
            for part in (inputs, tokens)
        ]
        turned = [part.reshape(inputs.shape) for part in turned]
        for here, there in zip(judge(inputs, tokens), judge(*turned)):
            assert here.tolist() == there.tolist()
    assert shortest_paths(turned[0])[1].tolist() == lengths.tolist()


def test_the_label_of_several_shortest_paths() -> None:
    """Seen from the goal: up before left before right before down."""
    labels, lengths = shortest_paths(grid("S../.../..G"))
    assert labels.tolist() == grid("Soo/..o/..G").tolist() and lengths.tolist() == [4]
    labels, _ = shortest_paths(grid("..G/.../S.."))
    assert labels.tolist() == grid("ooG/o../S..").tolist()


MAZE = "S.#/.../#.G"


@pytest.mark.parametrize(
    "tokens, steps",
    [
        ("S.#/oo./#oG", 4),
        ("So#/.oo/#.G", 4),
        ("S.#/.../#.G", UNREACHED),  # no mark at all
        ("So#/.o./#.G", UNREACHED),  # a gap
        ("So#/ooo/#.G", UNREACHED),  # a mark too many, beside the path
        ("So#/oo./#oG", UNREACHED),  # two ways at once
        ("So#/.oo/#oG", UNREACHED),  # two ways at the end
        ("So./.oo/#.G", UNREACHED),  # a wall taken away
        ("Soo/..o/#.G", UNREACHED),  # through a wall
        ("oo#/.oo/#.G", UNREACHED),  # the start painted over
        ("So#/.oo/#.o", UNREACHED),  # the goal painted over
        ("So#/.oo/#.?", UNREACHED),  # a cell that is none
        ("So#/.oo/#SG", UNREACHED),  # a second start
    ],
)
def test_what_is_a_path(tokens: str, steps: int) -> None:
    """Only open cells are marked, and all marks are needed."""
    judged = judge(grid(MAZE), grid(tokens))
    assert judged.steps.tolist() == [steps] and judged.shortest.tolist() == [4]
    assert judged.valid.tolist() == judged.optimal.tolist() == [steps != UNREACHED]


def test_a_detour_is_valid_but_not_optimal() -> None:
    """And start beside goal needs no marks."""
    inputs = grid("S.../.##./..../...G")
    judged = judge(inputs, grid("S.../o##./oooo/...G"))
    assert judged.steps.tolist() == [6] and judged.optimal.tolist() == [True]
    judged = judge(inputs, grid("S.../o##./o.oo/oooG"))  # a short cut: mark to mark
    assert judged.valid.tolist() == [False]
    inputs = grid("S..../.###./...../####./G....")
    judged = judge(inputs, grid("Soooo/.###o/....o/####o/Goooo"))
    assert judged.steps.tolist() == [12] and judged.optimal.tolist() == [True]
    inputs = grid("S..../.##../...../####./G....")
    judged = judge(inputs, grid("Soooo/.##oo/...oo/####o/Goooo"))
    assert judged.valid.tolist() == [False]
    inputs = grid("SG./.../...")
    assert judge(inputs, inputs).optimal.tolist() == [True]
    judged = judge(inputs, grid("SG./oo./..."))
    assert judged.valid.tolist() == [False]  # start and goal touch without the marks
    inputs = grid("S.G/#.#/...")
    assert judge(inputs, grid("SoG/#o#/...")).valid.tolist() == [False]
    inputs = grid("S#..G/..#../#...#/...../.....")
    judged = judge(inputs, grid("S#..G/oo#oo/#o.o#/.ooo./....."))
    assert (judged.steps.tolist(), judged.shortest.tolist()) == ([10], [8])
    assert judged.valid.tolist() == [True] and judged.optimal.tolist() == [False]


@pytest.mark.parametrize(
    "maze, problem",
    [
        ("S../.../..G", None),
        ("..../..../..../....", "the maze has no start S"),
        ("S../.../...", "the maze has no goal G"),
        ("S../.S./..G", "the maze has 2 times S, in row 1 column 1 and row 2 column 2"),
        ("SGG/G../..G", "the maze has 4 times G, in row 1 column 2 and row 1 column 3"),
        ("So./.../..G", "the maze has 'o' in row 1 column 2; only an answer may"),
        ("S../..?/..G", "the maze has '?' in row 2 column 3; only an answer may"),
        ("S#./##./..G", "no way leads from S in row 1 column 1 to G in row 3 column 3"),
    ],
)
def test_mazes_without_an_answer(maze: str, problem: Any) -> None:
    """Each beside one that has an answer, and nothing is marked in it."""
    size = maze.count("/") + 1
    good = grid("/".join(["S" + "." * (size - 2) + "G"] + ["." * size] * (size - 1)))
    labels, problems = solve_mazes(np.concatenate([grid(maze), good]))
    assert problems == ({} if problem is None else {0: problem})
    assert labels[1].tolist() == shortest_paths(good)[0][0].tolist()
    if problem is not None:
        assert labels[0].tolist() == grid(maze)[0].tolist()
        assert not judge(grid(maze), labels[:1]).valid[0]


def test_nothing_for_nothing() -> None:
    """An empty batch."""
    nothing = np.zeros((0, 9), np.uint8)
    assert shortest_paths(nothing)[0].shape == (0, 9) and not solve_mazes(nothing)[1]
    assert judge(nothing, nothing).valid.shape == (0,)
