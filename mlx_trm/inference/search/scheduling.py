"""Which rollout of which puzzle runs next, and when a puzzle is done.

It knows no arrays of a model: it hands out runs, takes what they found, and gives back puzzles in
the order in which they came. At most a window of puzzles is held at a time.
"""

import heapq
from typing import Dict, Iterable, Iterator, List, Optional, Set, Tuple

from mlx_trm.inference.search.problems import Problem
from mlx_trm.inference.search.selection import Candidate


class Work:
    """A puzzle that is being worked on, or done.

    Attributes:
        problem: the puzzle.
        arrival: how many came before it.
        begun: rollouts that have been handed out.
        running: numbers of those that have not ended.
        candidates: what the others found, by number.
        steps: supervision steps of all its rollouts, those given up included.
        accepted: the lowest rollout that the rules accept, where that ends the puzzle.
        best: steps and number of the first rollout to halt, where that ends the puzzle.
    """

    def __init__(self, problem: Problem, arrival: int) -> None:
        """Begin with nothing found."""
        self.problem = problem
        self.arrival = arrival
        self.begun = 0
        self.running: Set[int] = set()
        self.candidates: Dict[int, Candidate] = {}
        self.steps = 0
        self.accepted: Optional[int] = None
        self.best: Optional[Tuple[int, int]] = None

    def found(self) -> List[Candidate]:
        """Give the candidates that count, by rollout: none after the one that was accepted."""
        numbers = sorted(self.candidates)
        if self.accepted is not None:
            numbers = [number for number in numbers if number <= self.accepted]
        return [self.candidates[number] for number in numbers]

    def is_pointless(self, rollout: int, steps: int) -> bool:
        """Say whether a rollout cannot give the answer any more.

        Args:
            rollout: its number.
            steps: that it has had; it may halt at the next one.
        """
        if self.accepted is not None and rollout > self.accepted:
            return True
        return self.best is not None and (steps + 1, rollout) > self.best


class Schedule:
    """Hands out rollouts, first those of lower numbers.

    Where the rules may end a puzzle its rollouts follow one another, so that none is run for
    nothing; the next ones are begun ahead only where a row of the batch would be empty.
    """

    def __init__(
        self,
        problems: Iterable[Problem],
        rollouts: int,
        window: int,
        leaves_early: bool = False,
        first_halt: bool = False,
        ahead: bool = True,
    ) -> None:
        """Begin with no puzzle read.

        Args:
            problems: in the order in which they are given back; read one at a time.
            rollouts: of each puzzle, at most.
            window: puzzles held at a time, at most.
            leaves_early: a puzzle is done with the lowest rollout that the rules accept.
            first_halt: a rollout is given up when another has halted in fewer steps.
            ahead: begin the next rollouts of a puzzle where a row of the batch would be empty.
        """
        self._source: Optional[Iterator[Problem]] = iter(problems)
        self._rollouts = rollouts
        self._window = window
        self._leaves_early = leaves_early
        self._first_halt = first_halt
        self._ahead = ahead
        self._held: Dict[int, Work] = {}  # by order of arrival
        self._arrived = self._given = 0
        self._waiting: List[Tuple[int, int]] = []  # a heap of (rollout, arrival)
        self._unfinished: Set[int] = set()

    def take(self) -> Optional[Tuple[Work, int]]:
        """Give the next rollout to run as a puzzle and a number; None: there is none now."""
        if not self._waiting or self._waiting[0][0] > 0:
            self._pull()
        while self._waiting:
            rollout, arrival = heapq.heappop(self._waiting)
            work = self._held.get(arrival)
            if work is not None and self._can_begin(work) and work.begun == rollout:
                return self._begin(work)
        if not self._ahead:
            return None
        # Every puzzle that is left has a row, so these are no more than the batch has.
        left = (self._held[arrival] for arrival in self._unfinished)
        ahead = [(work.begun, work.arrival) for work in left if self._can_begin(work)]
        return self._begin(self._held[min(ahead)[1]]) if ahead else None

    @property
    def exhausted(self) -> bool:
        """Whether no puzzle is left that has had no row yet."""
        return self._source is None and not self._waiting

    def _can_begin(self, work: Work) -> bool:
        return work.begun < self._rollouts and not work.is_pointless(work.begun, 0)

    def _pull(self) -> None:
        """Read one more puzzle, where there is one and room for it."""
        if self._source is None or len(self._held) >= self._window:
            return
        problem = next(self._source, None)
        if problem is None:
            self._source = None
            return
        self._held[self._arrived] = Work(problem, self._arrived)
        self._unfinished.add(self._arrived)
        heapq.heappush(self._waiting, (0, self._arrived))
        self._arrived += 1

    def _begin(self, work: Work) -> Tuple[Work, int]:
        rollout = work.begun
        work.begun += 1
        work.running.add(rollout)
        if not self._leaves_early and work.begun < self._rollouts:
            heapq.heappush(self._waiting, (work.begun, work.arrival))
        return work, rollout

    def end(self, work: Work, rollout: int, steps: int, candidate: Optional[Candidate]) -> None:
        """Take what a rollout found.

        Args:
            work: the puzzle.
            rollout: its number.
            steps: supervision steps that it took.
            candidate: None where it was given up.
        """
        work.running.discard(rollout)
        work.steps += steps
        if candidate is not None:
            work.candidates[rollout] = candidate
            if self._leaves_early and candidate.accepted:
                earlier = rollout if work.accepted is None else work.accepted
                work.accepted = min(rollout, earlier)
            if self._first_halt and candidate.halted:
                mine = (candidate.steps, rollout)
                work.best = mine if work.best is None else min(mine, work.best)
        if not self._can_begin(work):
            if not work.running:
                self._unfinished.discard(work.arrival)
        elif self._leaves_early:
            heapq.heappush(self._waiting, (work.begun, work.arrival))

    def finished(self) -> Iterator[Work]:
        """Give back the puzzles that are done, each once, as far as all before them are."""
        while self._given in self._held and self._given not in self._unfinished:
            work = self._held.pop(self._given)
            self._given += 1
            yield work

    @property
    def done_count(self) -> int:
        """Puzzles that are done, those given back included."""
        return self._arrived - len(self._unfinished)
