"""How long somebody waits for a computation that cannot be told: loops that may be long ask."""

import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Callable, Iterator, NamedTuple, Optional

from mlx_trm.errors import DataError


class _Patience(NamedTuple):
    seconds: float
    end: float
    left: Callable[[], bool]


_PATIENCE: "ContextVar[Optional[_Patience]]" = ContextVar("mlx_trm_patience", default=None)


class GivenUp(DataError):
    """Nobody waits any more, or it took too long."""


@contextmanager
def limit_patience(seconds: float, left: Callable[[], bool]) -> Iterator[None]:
    """Let :func:`check_patience` end what is computed inside a ``with`` block, in this thread.

    Args:
        seconds: that it may take.
        left: says whether whoever waited has left; called often, from this thread.
    """
    token = _PATIENCE.set(_Patience(seconds, time.monotonic() + seconds, left))
    try:
        yield
    finally:
        _PATIENCE.reset(token)


def check_patience() -> None:
    """End a computation that nobody waits for; does nothing where no limit was set.

    Raises:
        GivenUp: saying why.
    """
    patience = _PATIENCE.get()
    if patience is None:
        return
    if patience.left():
        raise GivenUp("given up: nobody waits for it any more")
    if time.monotonic() > patience.end:
        raise GivenUp(
            f"given up after {patience.seconds:g} s: what the rules say of it takes longer; give "
            "more of the puzzle"
        )
