"""The rules of Go against positions that every player knows, and laws on random games."""

import random
from typing import Tuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.tasks.go.generator import play_game
from mlx_trm.tasks.go.rules import Rules, count_points, points_of, rules_of


def sets(*rows: str) -> Tuple[Rules, int, int]:
    """The rules of a board drawn in rows, its black and its white stones."""
    rules, text = rules_of(len(rows)), "".join(rows)
    cells = np.array(list(text))
    return rules, rules.to_bits(cells == "X"), rules.to_bits(cells == "O")


def at(size: int, row: int, column: int) -> int:
    """The set of one point, row and column from 0."""
    return 1 << (row * size + column)


def drawn(rules: Rules, black: int, white: int) -> str:
    """The rows of a board."""
    cells = np.full(rules.size**2, ".")
    cells[rules.to_flags(black)], cells[rules.to_flags(white)] = "X", "O"
    return "/".join("".join(row) for row in cells.reshape(rules.size, -1))


@pytest.mark.parametrize("size", [3, 7, 9])
def test_neighbours(size: int) -> None:
    """Four each, three at an edge, two in a corner; nothing leaves the board on its other side."""
    rules = rules_of(size)
    for row in range(size):
        for column in range(size):
            wanted = sum(
                at(size, r, c)
                for r, c in (
                    (row - 1, column),
                    (row + 1, column),
                    (row, column - 1),
                    (row, column + 1),
                )
                if 0 <= r < size and 0 <= c < size
            )
            assert rules.around(at(size, row, column)) == wanted


def test_sets_and_flags_are_inverse() -> None:
    """Bit r * size + c is row r, column c."""
    rules = rules_of(9)
    flags = np.random.default_rng(0).random(81) < 0.5
    bits = rules.to_bits(flags)
    assert (rules.to_flags(bits) == flags).all() and bits >> 80 == int(flags[80])
    assert sum(points_of(bits)) == bits and len(list(points_of(bits))) == count_points(bits)


def test_chains() -> None:
    """Stones hang together along lines, not across corners."""
    rules, black, _ = sets("XX..", "X..X", "..XX", "X...")
    assert sorted(map(count_points, rules.chains(black))) == [1, 3, 3]


def test_capture_of_several_chains_at_once() -> None:
    """One stone takes a corner stone and a pair."""
    rules, black, white = sets("O.OO", "XXXX", "....", "....")
    played = rules.play(black, white, at(4, 0, 1))
    assert played is not None and drawn(rules, *played[:2]) == ".X../XXXX/..../...."
    assert played.ko == 0


def test_suicide_is_illegal_and_a_capture_is_none() -> None:
    """Without a liberty nobody may stand, unless the move takes something."""
    rules, black, white = sets(".O..", "O...", "....", "....")
    assert rules.play(black, white, 1) is None and rules.play(white, black, 1) is not None
    rules, black, white = sets(".XO.", "XOO.", "OO..", "....")
    assert rules.play(white, black, 1) is not None  # takes two
    rules, black, white = sets("X.O.", "XXO.", "OO..", "....")
    assert rules.play(black, white, at(4, 0, 1)) is None  # a whole group's
    assert rules.play(black, white, 1) is None  # taken


def test_ko() -> None:
    """A lone stone that took a lone stone may not be taken back at once, by that stone alone."""
    rules, black, white = sets(".XO.", "X.XO", ".XO.", "....")
    taken = rules.play(white, black, at(4, 1, 1))
    assert taken is not None and taken.ko == at(4, 1, 2)
    assert rules.play(taken.other, taken.own, at(4, 1, 2), taken.ko) is None
    back = rules.play(taken.other, taken.own, at(4, 1, 2))
    assert back is not None and back.ko == at(4, 1, 1)


def test_a_stone_that_joins_others_makes_no_ko() -> None:
    """Nor does one that takes two: then it may be taken back at once."""
    rules, black, white = sets(".XO.", "OO..", "....", "....")
    joined = rules.play(white, black, 1)
    assert joined is not None and joined.other == 0 and joined.ko == 0
    rules, black, white = sets(".XXO", "XOO.", "....", "....")
    taken = rules.play(white, black, 1)
    assert taken is not None and taken.other == at(4, 1, 0) and taken.ko == 0


def test_territory() -> None:
    """Regions that reach one colour only; others, and an empty board, are nobody's."""
    rules, black, white = sets(".X.O.", "XX.OO", ".X.O.", ".X.O.", ".X.O.")
    blacks, whites = rules.territory(black, white)
    assert drawn(rules, blacks, whites) == "X...O/...../X...O/X...O/X...O"
    assert rules.territory(0, 0) == (0, 0)
    assert rules.territory(1, 0) == (rules.full ^ 1, 0)


def test_a_group_without_liberty_is_found() -> None:
    """On a board that somebody has set up."""
    rules, black, white = sets("XO..", "O...", "....", "....")
    assert rules.without_liberty(black, white) == 1 and rules.without_liberty(white, 0) == 0


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.sampled_from([5, 7]), st.integers(1, 8))
def test_every_stone_always_has_a_liberty(seed: int, size: int, area: int) -> None:
    """In games of any sort; both sides' stones never share a point."""
    rules = rules_of(size)
    for game in play_game(rules, random.Random(seed), area):
        assert not game.own & game.other
        assert not rules.without_liberty(game.own, game.other)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32))
def test_a_captured_group_had_no_liberty_left_and_vanishes(seed: int) -> None:
    """What a move takes off is whole groups whose last liberty it fills, and nothing else."""
    rules, rng = rules_of(7), random.Random(seed)
    for game in play_game(rules, rng):
        empty = rules.full & ~(game.own | game.other)
        move = rng.choice(list(points_of(empty)))
        choked = [c for c in rules.chains(game.other) if rules.around(c) & empty == move]
        played = rules.play(game.own, game.other, move)
        if played is None:
            group = rules.chain(move, game.own | move)
            assert not choked and not rules.around(group) & (empty ^ move)
        else:
            assert played.other == game.other ^ sum(choked)
            assert played.own == game.own | move
