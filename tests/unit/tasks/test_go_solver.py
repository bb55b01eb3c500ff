"""The capture solver: known ladders and nets, and a plain search of all moves beside it."""

import random
from typing import Dict, List, Optional, Set, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.tasks.go.files import parse_board
from mlx_trm.tasks.go.generator import play_game
from mlx_trm.tasks.go.positions import decode, point_name
from mlx_trm.tasks.go.rules import Played, Rules, points_of, rules_of
from mlx_trm.tasks.go.solver import CaptureSearch, UnsettledError

LADDER = "......./..XX.../.XW..../......./......./......./......."
BROKEN = "......./..XX.../.XW..../......./......./.....O./......."
NET = "......./..XX.../.XW..../.X...../......./....O../......."


def search_of(text: str, most_nodes: int = 20000) -> CaptureSearch:
    """A search in a 7x7 board of text."""
    rules = rules_of(7)
    position = decode(parse_board(text, "capture", 7), "capture", rules)
    groups = position.attacker, position.defender, position.marked
    return CaptureSearch(rules, *groups, most_nodes)


@pytest.mark.parametrize(
    "text, quiet, moves",
    [
        ("XXX.XXX/XWX..../......./......./......./......./.......", 0, ["B5"]),
        ("......./......./..XW.../...X.../......./......./.......", 1, []),
        (LADDER, 0, ["C4"]),
        (BROKEN, 0, []),
        (BROKEN, 1, []),
        (NET, 0, []),
        (NET, 1, ["D4"]),
    ],
)
def test_known_positions(text: str, quiet: int, moves: List[str]) -> None:
    """As every player reads them; a ladder breaker breaks, a net holds where no ladder does."""
    search = search_of(text)
    found = search.first_moves(quiet)
    assert sorted(point_name(move, 7) for move in found) == moves
    assert all(search.captures(move, quiet) for move in found)


def test_a_dead_group_is_dead_whoever_moves() -> None:
    """Its attacker may pass; a ladder has to be begun."""
    dead = "X.W.X../XXWWX../..XXX../......./......./......./......."
    assert search_of(dead).is_dead() and not search_of(LADDER).is_dead()


def test_too_long_a_search_says_so() -> None:
    """Nothing is answered that is not settled."""
    with pytest.raises(UnsettledError):
        search_of(NET, most_nodes=20).first_moves(1)


class PlainSearch:
    """The same question, every move of either side tried, on small boards."""

    def __init__(self, rules: Rules, target: int) -> None:
        self.rules, self.target = rules, target
        self.known: Dict[Tuple[int, int, int, int], bool] = {}
        self.open: Set[Tuple[int, int, int, int]] = set()

    def libs(self, attacker: int, defender: int) -> int:
        """Liberties of the group."""
        group = self.rules.chain(self.target, defender)
        return self.rules.around(group) & ~(attacker | defender)

    def attack(self, attacker: int, defender: int, ko: int, quiet: int) -> bool:
        """Whether the attacker, to move, captures."""
        key = (attacker, defender, ko, quiet)
        if key in self.open or len(self.known) > 3000:
            raise UnsettledError
        if key not in self.known:
            self.open.add(key)
            moves = points_of(self.rules.full & ~(attacker | defender))
            self.known[key] = any(self.wins(key, move) for move in moves)
            self.open.remove(key)
        return self.known[key]

    def wins(self, key: Tuple[int, int, int, int], move: int) -> bool:
        """Whether one of the attacker's moves does."""
        attacker, defender, ko, quiet = key
        played = self.rules.play(attacker, defender, move, ko)
        if played is None:
            return False
        if not played.other & self.target:
            return True
        libs = self.libs(played.own, played.other)
        if not libs & (libs - 1):
            if not move & self.libs(attacker, defender):
                return False  # a threat elsewhere
            return self.holds(played, quiet)
        return quiet > 0 and self.holds(played, quiet - 1)

    def holds(self, played: Played, quiet: int) -> bool:
        """Whether no reply saves the group."""
        after: List[Optional[Played]] = [Played(played.other, played.own, 0)]
        for move in points_of(self.rules.full & ~(played.own | played.other)):
            after.append(self.rules.play(played.other, played.own, move, played.ko))
        return all(self.attack(p.other, p.own, p.ko, quiet) for p in after if p is not None)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0, 1]))
def test_the_solver_says_what_a_plain_search_says(seed: int, quiet: int) -> None:
    """Zones leave nothing out: every first move, and whether the group is dead, are the same."""
    rules, rng = rules_of(4), random.Random(seed)
    games = [game for game in play_game(rules, rng) if game.other]
    game = rng.choice(games[len(games) // 3 :])
    group = rng.choice(list(rules.chains(game.other)))
    libs = rules.around(group) & ~(game.own | game.other)
    plain = PlainSearch(rules, group & -group)
    search = CaptureSearch(rules, game.own, game.other, group)
    try:
        moves = points_of(rules.full & ~(game.own | game.other))
        wanted = {m for m in moves if plain.wins((game.own, game.other, 0, quiet), m)}
        dead = plain.holds(Played(game.own, game.other, 0), quiet)
        found = {m for m in wanted | {libs & -libs} if search.captures(m, quiet)}
        others = [m for m in points_of(rules.full) if m not in wanted and search.captures(m, quiet)]
        best = set(search.first_moves(quiet))
        is_dead = search.is_dead(quiet)
    except UnsettledError:
        return
    assert found == wanted and not others
    assert best <= wanted and bool(best) == bool(wanted)
    assert is_dead == dead


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32))
def test_what_the_solver_calls_a_capture_is_one(seed: int) -> None:
    """Played out on 7x7 with every reply: after each there is again a move that captures."""
    rules, rng = rules_of(7), random.Random(seed)
    for game in list(play_game(rules, rng))[14::6]:
        group = rng.choice(list(rules.chains(game.other)))
        search = CaptureSearch(rules, game.own, game.other, group, 2000)
        try:
            for quiet in (0, 1):
                for move in search.first_moves(quiet)[:1]:
                    play_out(rules, game.own, game.other, move, group & -group, quiet, rng, 0)
        except UnsettledError:
            continue


def play_out(
    rules: Rules,
    own: int,
    other: int,
    move: int,
    target: int,
    quiet: int,
    rng: random.Random,
    depth: int,
) -> None:
    """Follow a first move: the group goes, or every reply leads to a position that is won too."""
    played = rules.play(own, other, move)
    assert played is not None and depth < 60
    if not played.other & target:
        return
    group = rules.chain(target, played.other)
    libs = rules.around(group) & ~(played.own | played.other)
    left = quiet if not libs & (libs - 1) else quiet - 1
    assert left >= 0
    replies: List[Optional[Played]] = [Played(played.other, played.own, 0)]
    for reply in points_of(rules.full & ~(played.own | played.other)):
        replies.append(rules.play(played.other, played.own, reply, played.ko))
    legal = [each for each in replies if each is not None and not each.ko]
    for after in rng.sample(legal, min(6, len(legal))):
        group = rules.chain(target, after.own)
        moves = CaptureSearch(rules, after.other, after.own, group).first_moves(left)
        assert moves
        play_out(rules, after.other, after.own, moves[0], target, left, rng, depth + 1)
