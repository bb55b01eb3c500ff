"""Counts work. How long something takes depends on what else the machine does."""

import sys
from types import FrameType
from typing import Any, Callable


class Calls:
    """Counts the calls of Python and C functions in a block, of this thread.

    What handles its rows one by one makes calls for each of them; what hands whole arrays to NumPy
    makes as many for a million rows as for ten.

    Attributes:
        count: of the calls.
    """

    count = 0

    def __enter__(self) -> "Calls":
        """Begin."""
        sys.setprofile(self._add)
        return self

    def __exit__(self, *_: Any) -> None:
        """End."""
        sys.setprofile(None)

    def _add(self, _frame: FrameType, event: str, _argument: Any) -> None:
        if event in ("call", "c_call"):
            self.count += 1


def count_calls(work: Callable[[], object]) -> int:
    """Return how many calls some work makes."""
    work()  # what is done once only does not count
    with Calls() as calls:
        work()
    return calls.count
