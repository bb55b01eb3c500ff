"""Generated mazes: solvable, as long as asked for, all different, decided by the seed."""

import hashlib
from typing import Any, Callable, List

import numpy as np
import pytest
from counting import Calls
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.errors import DataError
from mlx_trm.tasks.maze import generator
from mlx_trm.tasks.maze.generator import (
    MazeSet,
    default_min_path,
    generate_sets,
    leave_one_path,
    longest_path,
    maze_keys,
    place_ends,
    random_loops,
    random_walls,
)
from mlx_trm.tasks.maze.paths import (
    GOAL,
    OPEN,
    START,
    UNREACHED,
    WALL,
    distances,
    judge,
    mark_all_shortest_paths,
    shortest_paths,
)
from mlx_trm.tasks.symmetries import dihedral_transform

STYLES = st.sampled_from(["walls", "loops", "mixed"])


def make(count: int, size: int, seed: int = 0, **more: Any) -> MazeSet:
    """One set."""
    return generate_sets([count], size, np.random.default_rng(seed), **more)[0]


@settings(deadline=None, max_examples=25)
@given(st.integers(4, 16), STYLES, st.booleans(), st.integers(0, 2**32 - 1))
def test_generated_mazes(size: int, style: str, unique: bool, seed: int) -> None:
    """One start, one goal, a path of the right length; unique where asked for; no two alike."""
    made = make(9, size, seed, style=style, unique=unique)
    assert made.inputs.shape == (9, size * size) and made.inputs.dtype == np.uint8
    assert ((made.inputs == START).sum(axis=1) == 1).all()
    assert ((made.inputs == GOAL).sum(axis=1) == 1).all()
    assert np.isin(made.inputs, [WALL, OPEN, START, GOAL]).all()
    judged = judge(made.inputs, made.labels)
    assert judged.optimal.all() and (judged.steps == made.lengths).all()
    assert made.lengths.min() >= default_min_path(size)
    if unique:
        assert (mark_all_shortest_paths(made.inputs).sum(axis=1) == made.lengths + 1).all()
    assert len(set(maze_keys(made.inputs))) == 9
    again = make(9, size, seed, style=style, unique=unique)
    assert (again.inputs == made.inputs).all()


@pytest.mark.parametrize("size, steps", [(30, 111), (10, 21), (8, 15), (3, 3), (60, 222)])
def test_default_lengths(size: int, steps: int) -> None:
    """More than 110 at 30x30, as Maze-Hard; feasible elsewhere."""
    assert default_min_path(size) == steps < longest_path(size)


def test_no_shortest_path_is_longer_than_said() -> None:
    """Every 3x3 grid, every start: the bound is reached; and it holds in large mazes."""
    free = (np.arange(512)[:, None] >> np.arange(9)) % 2 == 1
    longest = 0
    for start in range(9):
        grids = free[free[:, start]]
        longest = max(longest, int(distances(grids, np.full(len(grids), start)).max()))
    assert longest == longest_path(3) == 6
    for size in (4, 5, 12):
        rng = np.random.default_rng(size)
        for draw in (random_walls, random_loops):
            grids = draw(300, size, rng)
            far = distances(grids, grids.argmax(axis=1)).max()
            assert size < far <= longest_path(size)


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 15), st.integers(0, 2**32 - 1))
def test_corridors_reach_every_room(size: int, seed: int) -> None:
    """All free cells hang together, and every other cell of a line is free."""
    rng = np.random.default_rng(seed)
    grids = random_loops(10, size, rng)
    away = distances(grids, grids.argmax(axis=1))
    assert ((away == UNREACHED) == ~grids).all()
    rooms = (size + 1) // 2
    assert (grids.sum(axis=1) >= 2 * rooms * rooms - 1).all()
    for cells in np.reshape(grids, (-1, size, size)):
        lines = [np.flatnonzero(cells.any(axis=axis)) for axis in (0, 1)]
        assert all(line[0] in (0, 1) and len(line) == 2 * rooms - 1 for line in lines)
        corner = cells[lines[1][0] :: 2, lines[0][0] :: 2]
        assert corner[:rooms, :rooms].all()


def test_corridors_have_loops() -> None:
    """Several routes: more free cells than a tree of rooms has, in most mazes."""
    grids = random_loops(200, 15, np.random.default_rng(0))
    extra = grids.sum(axis=1) - (2 * 64 - 1)
    assert extra.min() >= 0 and np.median(extra) >= 2 and extra.max() < 25


@settings(deadline=None, max_examples=20)
@given(st.integers(5, 12), st.integers(0, 2**32 - 1))
def test_one_path_is_left(size: int, seed: int) -> None:
    """The label's; the maze has only more walls, and its length stays."""
    rng = np.random.default_rng(seed)
    inputs = place_ends(random_walls(30, size, rng), size, rng)
    labels, lengths = shortest_paths(inputs)
    left = leave_one_path(inputs)
    assert left.dtype == np.uint8
    assert ((left == inputs) | ((left == WALL) & (inputs == OPEN))).all()
    assert (mark_all_shortest_paths(left).sum(axis=1) == lengths + 1).all()
    again, same = shortest_paths(left)
    assert (same == lengths).all() and ((again == 5) == (labels == 5)).all()


def test_sets_share_nothing() -> None:
    """Not even turned or flipped; what is excluded comes in no set."""
    rng = np.random.default_rng(2)
    sets = generate_sets([300, 200], 4, rng, "walls", 3)
    keys = maze_keys(np.concatenate([made.inputs for made in sets]))
    assert len(set(keys)) == 500
    other = generate_sets([300], 4, np.random.default_rng(2), "walls", 3, exclude=keys)[0]
    assert not set(keys) & set(maze_keys(other.inputs))


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 8), st.integers(0, 7), st.integers(0, 2**32 - 1))
def test_keys_know_the_eight_forms(size: int, number: int, seed: int) -> None:
    """Equal for them, different for anything else."""
    inputs = make(2, size, seed, min_path=2).inputs
    turned = dihedral_transform(inputs.reshape(-1, size, size), number).reshape(inputs.shape)
    keys = maze_keys(inputs)
    assert maze_keys(turned) == keys and keys[0] != keys[1]
    swapped = np.where(inputs == START, GOAL, np.where(inputs == GOAL, START, inputs))
    same = [
        any((dihedral_transform(a.reshape(size, size), k).ravel() == b).all() for k in range(8))
        for a, b in zip(inputs, swapped)
    ]
    assert [a == b for a, b in zip(keys, maze_keys(swapped))] == same


def test_mixed_is_both_by_turns() -> None:
    """Walls first; corridors have a row of cells of which every other one is a room."""
    made = make(40, 9, style="mixed")
    rooms = (made.inputs.reshape(-1, 9, 9)[:, ::2, ::2] != WALL).all(axis=(1, 2))
    assert rooms[1::2].all() and not rooms[::2].any()


@pytest.fixture(name="drawn")
def count_grids(monkeypatch: pytest.MonkeyPatch) -> List[int]:
    """How many grids are drawn, an entry each time."""
    counts: List[int] = []

    def counted(draw: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def call(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
            counts.append(count)
            return draw(count, size, rng)

        return call

    for name in ("random_walls", "random_loops"):
        monkeypatch.setattr(generator, name, counted(getattr(generator, name)))
    return counts


@pytest.mark.parametrize(
    "count, size, more, message",
    [
        (2000, 3, {}, r"3x3 mazes \(walls\) with a path of at least 3 steps: only \d+ different"),
        (1, 12, {"style": "walls", "min_path": 90}, "90 steps: only 0 different ones found, 1 wan"),
        (3, 8, {"style": "loops", "min_path": 44, "unique": True}, "one shortest path of at least"),
    ],
)
def test_what_does_not_exist_is_not_searched_for_ever(
    count: int, size: int, more: Any, message: str, drawn: List[int]
) -> None:
    """An error that says what was wanted, after a number of grids."""
    with pytest.raises(DataError, match=message):
        make(count, size, **more)
    assert 20_000 <= sum(drawn) < 30_000


def digest(made: MazeSet) -> str:
    """A short hash of mazes and labels."""
    total = hashlib.sha256(np.ascontiguousarray(made.inputs).tobytes())
    total.update(np.ascontiguousarray(made.labels).tobytes())
    return total.hexdigest()[:16]


@pytest.mark.parametrize(
    "size, style, unique, expected",
    [
        (8, "mixed", False, "7601ff5560cd949b"),
        (11, "loops", True, "c0b536e4839fab9a"),
        (20, "walls", False, "6e3e74949fe6fd66"),
    ],
)
def test_a_seed_decides_every_cell(size: int, style: str, unique: bool, expected: str) -> None:
    """Recorded: other mazes for the same seed need a new GENERATOR_VERSION and a reason."""
    assert digest(make(20, size, 5, style=style, unique=unique)) == expected
    assert digest(make(20, size, 6, style=style, unique=unique)) != expected


def test_hard_mazes_take_few_grids(drawn: List[int]) -> None:
    """One of 100 random grids of 30x30 cells has a path of more than 110 steps; few calls."""
    with Calls() as calls:
        made = make(50, 30, style="walls")
    assert made.lengths.min() >= 111
    assert sum(drawn) < 10_000
    assert calls.count < 4 * sum(drawn)  # and not one for each of 900 cells
