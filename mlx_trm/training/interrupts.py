"""Ctrl-C while a run trains from Python: the step is finished, the run saved, a report returned.

Commands catch signals themselves; in a script or a notebook nobody does, and ``KeyboardInterrupt``
would be raised between any two operations, the half of an update included.
"""

import logging
import signal
import threading
from contextlib import contextmanager
from typing import Any, Iterator

LOG = logging.getLogger(__name__)


class Abandoned(KeyboardInterrupt):
    """The first Ctrl-C, raised where the work at hand can be left and done again later."""


class Interrupts:
    """Turns the first Ctrl-C into a wish to stop, inside a ``with`` block; a second one raises.

    Where a handler is set already, or in another thread than the main one, it does nothing.

    Attributes:
        came: whether there was one.
    """

    def __init__(self) -> None:
        """Prepare; signals are caught inside the ``with`` block only."""
        self.came = False
        self._installed = False
        self._may_abandon = False

    def __enter__(self) -> "Interrupts":
        """Catch the signal, where nobody else does."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(self, *_error: object) -> None:
        """Leave the signal as it was."""
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False

    def _handle(self, _number: int, _frame: Any) -> None:
        self.came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._may_abandon:
            raise Abandoned
        LOG.warning("stopping: finishing this step and saving; Ctrl-C again stops at once")

    @contextmanager
    def may_abandon(self, alone: bool) -> Iterator[None]:
        """Let the first Ctrl-C leave the block at once; what it did so far is not needed.

        Args:
            alone: no other process waits for this one; otherwise the block is finished.
        """
        self._may_abandon = alone
        try:
            if alone and self.came:
                raise Abandoned
            yield
        finally:
            self._may_abandon = False
