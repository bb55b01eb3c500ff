"""Makes puzzles from seeded games of players who move at random and fill no eyes of their own.

Which split a puzzle belongs to is decided by its key, which turns and colours do not change: so the
splits share nothing, and one is made without the other.
"""

import random
from typing import Iterable, Iterator, NamedTuple, Optional, Set, Tuple

import numpy as np

from mlx_trm.datasets.writing import SPLITS
from mlx_trm.errors import DataError
from mlx_trm.tasks.go.answers import label_of
from mlx_trm.tasks.go.positions import MOVE, Position, board_keys, encode
from mlx_trm.tasks.go.rules import Rules, count_points, points_of, rules_of
from mlx_trm.tasks.go.solver import CaptureSearch, UnsettledError

# Raised whenever the same seed gives other puzzles.
GENERATOR_VERSION = 1

# One puzzle in so many may be a test puzzle.
_TEST_SHARE = 4
# Positions that the search of a generated puzzle may visit; what takes more is dropped.
_MOST_NODES = 4000
# Stones on the board of a capture puzzle, at least, as a share of its points.
_FULL = 0.25
# Sorts of capture puzzles: the group is in atari; it has two liberties and is caught; it is safe.
_SHARES = {"atari": 0.125, "caught": 0.375, "safe": 0.5}
# So many games in a row without a new puzzle, and no more are played.
_PATIENCE = 2000


class Game(NamedTuple):
    """A position of a game.

    Attributes:
        own: stones of the side to move.
        other: stones of the other side.
        black: whether black is to move.
    """

    own: int
    other: int
    black: bool

    def position(self, marked: int = 0) -> Position:
        """Give it with a group marked."""
        black, white = (self.own, self.other) if self.black else (self.other, self.own)
        return Position(black, white, marked)


def play_game(rules: Rules, rng: random.Random, area: int = 1) -> Iterator[Game]:
    """Play a game at random; it ends when nobody has anywhere to play.

    Args:
        rules: of the board.
        rng: decides every move.
        area: empty regions of at most so many points that border on one colour are left alone:
            its owner does not fill them, and the other side plays there only to capture.

    Returns:
        An iterator over the positions after each move.
    """
    own, other, ko, black, passes = 0, 0, 0, True, 0
    for _ in range(4 * rules.size**2):  # a triple ko would never end
        kept = held = 0
        for region in rules.regions(own, other):
            if region.black != region.white and count_points(region.points) <= area:
                kept |= region.points if region.black else 0
                held |= region.points if region.white else 0
        moves = list(points_of(rules.full & ~(own | other | kept)))
        rng.shuffle(moves)
        passes += 1
        for move in moves:
            played = rules.play(own, other, move, ko)
            if played is not None and not (move & held and played.other == other):
                own, other, ko = played
                passes = 0
                break
        if passes == 2:
            return
        own, other, ko, black = other, own, ko if not passes else 0, not black
        if not passes:
            yield Game(own, other, black)


def capture_puzzles(rules: Rules, rng: random.Random) -> Iterator[Position]:
    """Yield positions of games with a group of one or two liberties marked, not yet solved."""
    for game in play_game(rules, rng):
        if rng.random() >= 0.2 or count_points(game.own | game.other) < _FULL * rules.size**2:
            continue
        empty = rules.full & ~(game.own | game.other)
        groups = [
            chain
            for chain in rules.chains(game.other)
            if count_points(rules.around(chain) & empty) <= 2
        ]
        if groups:
            yield game.position(rng.choice(groups))


def territory_puzzles(rules: Rules, rng: random.Random) -> Iterator[Position]:
    """Play one game until the board is settled, and yield its end.

    Regions of up to so many points, a number of the game's own, count as territory. In half of the
    games up to three neutral points are left, as players do who agree that they are worth nothing.
    Random players fill the board; some of the stones inside a territory are then taken off again.
    """
    area = rng.randint(2, 2 * rules.size)
    neutral = rng.choice((0, 0, 0, 1, 2, 3))
    last: Optional[Game] = None
    for last in play_game(rules, rng, area):
        if neutral and _is_settled(rules, last, area, neutral):
            break
    if last is not None:
        yield thin_out(rules, last.position(), rng)


def thin_out(rules: Rules, position: Position, rng: random.Random) -> Position:
    """Take stones off a settled board, so that territories are larger and their walls thin.

    A stone goes only where the region that it leaves borders on its own colour alone, so whose
    each other point is stays as it was.

    Args:
        rules: of the board.
        position: without a marked group.
        rng: decides which stones, and how many at most.
    """
    sides = [position.black, position.white]
    stones = list(points_of(position.black | position.white))
    rng.shuffle(stones)
    most = rng.randint(0, len(stones) // 2)
    for stone in stones:
        side = 0 if sides[0] & stone else 1
        empty = rules.full & ~(sides[0] | sides[1]) | stone
        border = rules.around(rules.chain(stone, empty))
        if most and not border & sides[1 - side] and border & sides[side] & ~stone:
            sides[side] ^= stone
            most -= 1
    return Position(sides[0], sides[1])


def _is_settled(rules: Rules, game: Game, area: int, neutral: int) -> bool:
    """Whether all but so many points are territory, and no group can be taken by one move."""
    open_points = 0
    for region in rules.regions(game.own, game.other):
        count = count_points(region.points)
        if region.black and region.white:
            open_points += count
        elif count > area:
            return False
    if open_points > neutral:
        return False
    empty = rules.full & ~(game.own | game.other)
    return all(
        count_points(rules.around(chain) & empty) > 1
        for stones in (game.own, game.other)
        for chain in rules.chains(stones)
    )


def generate_puzzles(
    split: Optional[str],
    count: int,
    kind: str,
    size: int,
    quiet: int,
    rng: np.random.Generator,
    exclude: Iterable[bytes] = (),
) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Make puzzles with their labels.

    Of capture puzzles half have a group that can be captured, a quarter of these one that is in
    atari. Groups that are dead whoever moves are left out, since no move there is an answer, and
    those that the solver does not settle.

    Args:
        split: ``train`` or ``test``; no puzzle of one can be turned into one of the other. None:
            any puzzle.
        count: how many.
        kind: ``capture`` or ``territory``.
        size: rows of the board.
        quiet: moves of the attacker that are no atari, at most.
        rng: decides everything.
        exclude: :func:`board_keys` of puzzles to keep out.

    Returns:
        An iterator over (S,) uint8 inputs and (S,) uint8 labels, all different.

    Raises:
        DataError: if so many different ones are not found.
    """
    rules, games = rules_of(size), random.Random(int(rng.integers(1 << 62)))
    maker = _Maker(rules, kind, quiet)
    draw = capture_puzzles if kind == "capture" else territory_puzzles
    seen: Set[bytes] = set(exclude)
    have = in_vain = 0
    while have < count:
        in_vain += 1
        if in_vain > _PATIENCE:
            raise DataError(
                f"only {have} different {size}x{size} {kind} puzzles found, {count} wanted"
                f"{f' for {split}' if split else ''}; ask for fewer"
            )
        for position in draw(rules, games):
            inputs = encode(position, rules)
            key = board_keys(inputs[None], kind, size)[0]
            is_test = key[0] % _TEST_SHARE == 0
            if have == count or key in seen or split and is_test != (split == SPLITS[1]):
                continue
            label = maker.label(position, inputs)
            if label is not None:
                seen.add(key)
                have, in_vain = have + 1, 0
                yield inputs, label


class _Maker:
    """Labels puzzles, and drops those that would be too many of their sort."""

    def __init__(self, rules: Rules, kind: str, quiet: int) -> None:
        self.rules, self.kind, self.quiet = rules, kind, quiet
        self.counts = dict.fromkeys(_SHARES, 0)

    def label(self, position: Position, inputs: np.ndarray) -> Optional[np.ndarray]:
        """Give (S,) uint8 labels; None: the puzzle is not wanted."""
        if self.kind == "territory":
            return label_of(inputs, self.kind, self.rules.size, self.quiet)
        empty = self.rules.full & ~(position.black | position.white)
        libs = self.rules.around(position.marked) & empty
        in_atari = count_points(libs) == 1
        if in_atari and not self._wanted("atari"):
            return None
        search = CaptureSearch(
            self.rules, position.attacker, position.defender, position.marked, _MOST_NODES
        )
        try:
            moves = search.first_moves(self.quiet)
            sort = "atari" if in_atari else "caught" if moves else "safe"
            if not self._wanted(sort) or (moves and search.is_dead(self.quiet)):
                return None
        except UnsettledError:
            return None
        self.counts[sort] += 1
        return np.where(self.rules.to_flags(sum(moves)), np.uint8(MOVE), inputs)

    def _wanted(self, sort: str) -> bool:
        return self.counts[sort] <= _SHARES[sort] * sum(self.counts.values())
