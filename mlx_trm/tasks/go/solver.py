"""Can a group be captured, and by which first moves: an exact search of ladders and nets.

The attacker moves first and wins when the group is taken off. Moves that leave the group one
liberty (atari) are free; of other moves, the *quiet* ones, the attacker has so many and no more. A
ladder has none, a net or a loose ladder has one. So the question is finite, and its answer, yes or
no, is a fact: every reply of the defender that could matter is tried, passing included. Ko
is the simple rule, and threats elsewhere are not counted: a group in atari is taken or it is not.

Each result comes with its *zone*: all points whose content the search has looked at. A move that
changes none of them changes nothing in the search, so most of the board need not be tried.
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

from mlx_trm.tasks.go.rules import Played, Rules, points_of

# Non-ataris that the attacker may play, and positions that a search may visit.
MOST_QUIET = 1
MOST_NODES = 20_000


class UnsettledError(Exception):
    """The search has visited as many positions as it may, or one comes up again below itself."""


class Found(NamedTuple):
    """What a search has found.

    Attributes:
        captured: whether the attacker takes the group.
        zone: points that this depends on.
    """

    captured: bool
    zone: int


class CaptureSearch:
    """All about capturing one group: the attacker to move, the group given by one of its stones.

    Attributes:
        nodes: positions visited so far.
    """

    def __init__(
        self, rules: Rules, attacker: int, defender: int, group: int, most_nodes: int = MOST_NODES
    ) -> None:
        """Take a position; nothing is searched yet.

        Args:
            rules: of the board.
            attacker: stones of the side to move.
            defender: stones of the other side.
            group: some or all stones of one chain of the defender.
            most_nodes: positions visited, at most.
        """
        self.rules = rules
        self.attacker, self.defender = attacker, defender
        self._target = group & -group
        self._most_nodes = most_nodes
        self.nodes = 0
        self._known: Dict[Tuple[int, int, int, int], Optional[Found]] = {}

    def first_moves(self, most_quiet: int = MOST_QUIET) -> List[int]:
        """Give the first moves that capture the group with the fewest quiet moves.

        Args:
            most_quiet: quiet moves of the attacker, at most.

        Returns:
            Sets of one point each, in the order of the board; none where the group is safe.

        Raises:
            UnsettledError: if the search would take too long.
        """
        libs = self._liberties(self.attacker, self.defender)
        if not libs & (libs - 1):
            return [libs]
        for quiet in range(most_quiet + 1):
            # Most moves cannot matter: where the zone says that none does, none is tried.
            if self._attack(self.attacker, self.defender, 0, quiet).captured:
                tried = libs if quiet == 0 else self.rules.full
                return [move for move in points_of(tried) if self.captures(move, quiet)]
        return []

    def captures(self, move: int, quiet: int = MOST_QUIET) -> bool:
        """Say whether a first move captures the group, whatever the defender does.

        Args:
            move: a set of one point.
            quiet: quiet moves of the attacker, at most, this one included.

        Raises:
            UnsettledError: if the search would take too long.
        """
        played = self.rules.play(self.attacker, self.defender, move)
        if played is None:
            return False
        if not played.other & self._target:
            return True
        libs = self._liberties(played.own, played.other)
        if not libs & (libs - 1):
            before = self._liberties(self.attacker, self.defender)
            return bool(move & before) and self._defend(played, quiet).captured
        return quiet > 0 and self._hold(played, quiet - 1) is not None

    def is_dead(self, quiet: int = MOST_QUIET) -> bool:
        """Say whether the attacker could even pass: the defender moves first and is captured.

        Raises:
            UnsettledError: if the search would take too long.
        """
        return self._hold(Played(self.attacker, self.defender, 0), quiet) is not None

    def reply(self, played: Played, quiet: int) -> Optional[int]:
        """Give a reply of the defender after which the group is not captured; None: none is.

        Args:
            played: the position after the attacker's move, the defender to move.
            quiet: quiet moves that the attacker has left.

        Returns:
            A set of one point, or 0 for passing.

        Raises:
            UnsettledError: if the search would take too long.
        """
        for move in (0, *points_of(self.rules.full & ~(played.own | played.other))):
            after = (
                self.rules.play(played.other, played.own, move, played.ko)
                if move
                else Played(played.other, played.own, 0)
            )
            if after and not self._attack(after.other, after.own, after.ko, quiet).captured:
                return move
        return None

    # The search --------------------------------------------------------------------------------

    def _liberties(self, attacker: int, defender: int) -> int:
        group = self.rules.chain(self._target, defender)
        return self.rules.around(group) & ~(attacker | defender)

    def _attack(self, attacker: int, defender: int, ko: int, quiet: int) -> Found:
        """Search with the attacker to move and so many quiet moves left."""
        key = (attacker, defender, ko, quiet)
        if key not in self._known:
            self.nodes += 1
            if self.nodes > self._most_nodes:
                raise UnsettledError
            self._known[key] = None
            self._known[key] = self._search_attack(attacker, defender, ko, quiet)
        found = self._known[key]
        if found is None:  # below itself: who may repeat what is not for this search to say
            raise UnsettledError
        return found

    def _search_attack(self, attacker: int, defender: int, ko: int, quiet: int) -> Found:
        rules = self.rules
        group = rules.chain(self._target, defender)
        near = rules.around(group)
        zone = group | near
        libs = near & ~(attacker | defender)
        rest = libs & (libs - 1)
        if not rest and libs != ko:
            return Found(True, zone)
        if rest and not rest & (rest - 1):  # two liberties: an atari at either of them
            for move in (libs ^ rest, rest):
                played = rules.play(attacker, defender, move, ko)
                zone |= self._seen(attacker, defender, move)
                if played is not None:
                    found = self._defend(played, quiet)
                    if found.captured:
                        return Found(True, group | near | found.zone | zone)
                    zone |= found.zone
        if quiet == 0:
            return Found(False, zone)
        if bin(libs).count("1") > 2 + quiet:
            return Found(False, zone)
        return self._search_quiet(attacker, defender, ko, quiet, libs)

    def _search_quiet(self, attacker: int, defender: int, ko: int, quiet: int, libs: int) -> Found:
        """Try the moves that are no atari."""
        rules = self.rules
        without = self._attack(attacker, defender, ko, quiet - 1)
        if without.captured:
            return without
        # Should the attacker move and the defender pass, the group must be caught; if the move
        # changes nothing in the zone of the search that failed, it is not.
        passed = self._attack(attacker, defender, 0, quiet - 1)
        empty = rules.full & ~(attacker | defender)
        for move in (*points_of(libs), *points_of(empty & ~libs)):
            played = rules.play(attacker, defender, move, ko)
            if played is None:
                continue
            changed = move | (defender ^ played.other)
            if not passed.captured and not changed & passed.zone:
                continue
            left = self._liberties(played.own, played.other)
            if not left & (left - 1):
                continue  # an atari, which has been tried
            zone = self._hold(played, quiet - 1)
            if zone is not None:
                return Found(True, zone | self._seen(attacker, defender, move))
        return Found(False, rules.full)

    def _hold(self, played: Played, quiet: int) -> Optional[int]:
        """Let the defender move anywhere, or pass.

        Returns:
            The zone where the group is captured all the same; None where it is not.
        """
        rules = self.rules
        attacker, defender, ko = played
        passed = self._attack(attacker, defender, 0, quiet)
        if not passed.captured:
            return None
        # Stones of the attacker in the zone matter to their edges: who takes them changes it.
        held = rules.chain(passed.zone & attacker, attacker)
        zone = passed.zone | held | rules.around(held)
        libs = self._liberties(attacker, defender)
        empty = rules.full & ~(attacker | defender)
        for move in (*points_of(libs), *points_of(empty & ~libs)):
            after = rules.play(defender, attacker, move, ko)
            changed = move if after is None else move | (attacker ^ after.other)
            if not changed & passed.zone:
                continue
            zone |= self._seen(defender, attacker, move)
            if after is None:
                continue
            found = self._attack(after.other, after.own, after.ko, quiet)
            if not found.captured:
                return None
            zone |= found.zone
        return zone

    def _defend(self, played: Played, quiet: int) -> Found:
        """Search with the defender to move and the group in atari.

        Only two things help: to play at the last liberty, or to take stones beside the group.
        After anything else the attacker takes it.
        """
        rules = self.rules
        attacker, defender, ko = played
        group = rules.chain(self._target, defender)
        near = rules.around(group)
        empty = rules.full & ~(attacker | defender)
        zone, moves = group | near, near & empty
        beside = near & attacker
        for chain in rules.chains(rules.chain(beside, attacker)) if beside else ():
            border = rules.around(chain)
            zone |= chain | border
            libs = border & empty
            if not libs & (libs - 1):
                moves |= libs
        for move in points_of(moves):
            after = rules.play(defender, attacker, move, ko)
            zone |= self._seen(defender, attacker, move)
            if after is not None:
                found = self._attack(after.other, after.own, after.ko, quiet)
                if not found.captured:
                    return Found(False, zone | found.zone)
                zone |= found.zone
        return Found(True, zone)

    def _seen(self, own: int, other: int, move: int) -> int:
        """Give the points that decide what a move does: its chain, those beside it, their edges."""
        rules = self.rules
        stones = rules.chain(move, own | move) | rules.chain(rules.around(move), other)
        return stones | rules.around(stones)
