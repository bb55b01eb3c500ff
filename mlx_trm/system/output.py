"""What a command shows: streams that outlast their readers and do nothing to a terminal.

A stream whose reader has left, or whose disk is full, must not end a training run; and text that
came out of a file must not move the cursor, change a title or hide a line.
"""

import os
import re
import sys
from contextlib import contextmanager, suppress
from typing import Any, Iterator, Optional, Pattern

from mlx_trm.errors import printable

COLORS = re.compile(r"\x1b\[[0-9;]*m")
STANDARD_OUTPUT = "standard output"  # the file that its errors name
# What a progress bar needs: back to the line's begin, and up where there are several.
MOVES = re.compile(r"\r|\x1b\[A")


class Output:
    """A stream of text around another one; whatever is not changed here is the other one's.

    Attributes:
        failure: the error after which nothing was written any more; None: all was written.
    """

    def __init__(self, stream: Any, allowed: Optional[Pattern[str]], lasting: bool) -> None:
        """Wrap a stream.

        Args:
            stream: such as ``sys.stdout``.
            allowed: sequences that may reach it although they are not printable.
            lasting: whether its errors are kept to oneself.
        """
        self._stream = stream
        self._allowed = allowed
        self._lasting = lasting
        self.failure: Optional[OSError] = None

    def write(self, text: str) -> int:
        """Write text, printable.

        Raises:
            OSError: if that fails and the stream is not a lasting one; its file name is
            :data:`STANDARD_OUTPUT`.
        """
        if self.failure is None:
            try:
                self._stream.write(printable(text, self._allowed))
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write what waits to be written; errors as of :meth:`write`."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        discard(self._stream)
        self.failure = error
        if self._lasting:
            return
        if error.errno is None:
            raise error
        raise OSError(error.errno, error.strerror, STANDARD_OUTPUT) from error

    def __getattr__(self, name: str) -> Any:
        """Give what the wrapped stream has."""
        return getattr(self._stream, name)


def unwritten_output(error: OSError) -> str:
    """Say in a line why standard output could not be written, and how to mend it."""
    reason = error.strerror or str(error)
    return (
        f"{STANDARD_OUTPUT}: cannot be written ({reason}); free space there, or send it elsewhere"
    )


def discard(stream: Any) -> None:
    """Send what a stream has still to write nowhere, or Python would complain at its end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # no file behind it
        pass


@contextmanager
def shown_output(lasting: bool = False) -> Iterator[Output]:
    """Wrap standard output and error, inside a ``with`` block.

    Args:
        lasting: whether the command goes on where its standard output cannot be written. What goes
            to standard error never ends a command.

    Yields:
        Standard output.
    """
    before = sys.stdout, sys.stderr
    colors = COLORS if before[0].isatty() else None
    out: Any = Output(before[0], colors, lasting)
    err: Any = Output(before[1], MOVES, lasting=True)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
        # Of --help: where its reader has left or the disk is full, nothing needs to be said.
        with suppress(OSError, ValueError):
            out.flush()
