"""Processes that train together, on one machine or several, over ``mx.distributed``.

Every process holds the whole model and its share of each batch. Started by ``mlx.launch`` (or with
its environment variables, or ``mpirun``); alone, everything here does nothing.

Reference: the torch.distributed calls in pretrain.py and models/sparse_embedding.py.
"""

import ctypes
import io
import json
import os
import select
import signal
import warnings
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_trm.errors import ConfigError, TRMError, describe_device_problem, shown
from mlx_trm.system.device import on_cuda

# Whoever launches several processes sets one of these for each.
LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
# What a launcher tells each of them where they shall communicate by NCCL.
NCCL_VARIABLES = ("NCCL_HOST_IP", "NCCL_PORT", "MLX_RANK", "MLX_WORLD_SIZE")
# How long the others have to start.
PATIENCE = "MLX_TRM_WAIT_FOR_PEERS"

T = TypeVar("T")


class Processes:
    """This process among those that train together.

    Attributes:
        rank: from 0; number 0 writes files and talks.
        size: how many there are.
        waits: whether a message has been computed when :meth:`sum` or :meth:`gather` returns. Over
            a ring it has to be: MLX tells of a process that is gone where its message is evaluated
            alone, and waits for ever where it is evaluated with what needs it. NCCL never tells, so
            there messages are only begun, in the order of the program.
    """

    def __init__(self, group: Optional[Any] = None, waits: bool = True) -> None:
        """Take part in a group; without one the process is alone."""
        self._group = group
        self.waits = waits
        self.rank = 0 if group is None else int(group.rank())
        self.size = 1 if group is None else int(group.size())

    @classmethod
    def start(cls) -> "Processes":
        """Join the processes that were launched together with this one.

        MLX waits without an end for one that never starts, and lets no signal through meanwhile. So
        the process ends with a line and code 2 where that takes longer than
        ``MLX_TRM_WAIT_FOR_PEERS`` says, in seconds (default: 60).

        Raises:
            ConfigError: if that fails, or the variable holds no such number.
        """
        if not any(name in os.environ for name in LAUNCHED) or _one_host():
            return cls()
        by_nccl = on_cuda() and all(os.environ.get(name) for name in NCCL_VARIABLES)
        try:
            with _ended_after(_patience()):
                group = mx.distributed.init(strict=True, backend="nccl" if by_nccl else "any")
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the processes that were launched together cannot reach each other ({error}); "
                "see docs/distributed.md"
            ) from error
        return cls(group if group.size() > 1 else None, waits=not by_nccl)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def sum(self, tree: T) -> T:
        """Sum a tree of float32 arrays over all processes, in one message.

        Every process gets the same bits.
        """
        if self.size == 1:
            return tree
        leaves: Any = tree_flatten(tree)
        flat: List[Tuple[str, mx.array]] = list(leaves)
        joined = mx.concatenate([array.astype(mx.float32).reshape(-1) for _, array in flat])
        total = self._call(mx.distributed.all_sum, joined)
        found, start = [], 0
        for name, array in flat:
            found.append((name, total[start : start + array.size].reshape(array.shape)))
            start += array.size
        return tree_unflatten(found)  # type: ignore[no-any-return]

    def gather(self, array: mx.array) -> mx.array:
        """Put the (n, ...) arrays of all processes one after the other, by rank."""
        if self.size == 1:
            return array
        if array.dtype == mx.bool_:  # MLX's NCCL backend sends numbers only
            return self.gather(array.astype(mx.uint8)).astype(mx.bool_)
        return self._call(mx.distributed.all_gather, array)

    def share(self, count: int) -> slice:
        """Give this process's part of ``count`` rows, a multiple of :attr:`size`."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def any(self, *flags: bool) -> List[bool]:
        """Say of each flag whether any process has it set; all get the same answer."""
        if self.size == 1:
            return list(flags)
        total = self.sum({"flags": mx.array([float(flag) for flag in flags])})["flags"]
        return [value > 0 for value in total.tolist()]  # type: ignore[union-attr, operator]

    def first(self, number: float) -> float:
        """Give the number that process 0 has; float32 where there are several processes."""
        if self.size == 1:
            return number
        mine = mx.array(number if self.leads else 0.0)
        return float(self.sum({"number": mine})["number"].item())  # type: ignore[arg-type]

    def gather_arrays(self, arrays: Dict[str, np.ndarray]) -> List[Dict[str, np.ndarray]]:
        """Give every process's named NumPy arrays, by rank; shapes may differ."""
        if self.size == 1:
            return [arrays]
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
        mine = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
        sizes = self.gather(mx.array([len(mine)], dtype=mx.int32)).tolist()
        padded = np.zeros(max(sizes), dtype=np.uint8)  # type: ignore[type-var, arg-type]
        padded[: len(mine)] = mine
        everything = np.array(self.gather(mx.array(padded)[None]))
        found = []
        for row, size in zip(everything, sizes):  # type: ignore[arg-type]
            with np.load(io.BytesIO(row[:size].tobytes()), allow_pickle=False) as read:
                found.append({name: read[name] for name in read.files})
        return found

    def agree(self, what: str, text: str) -> None:
        """Refuse to go on where the processes differ.

        Args:
            what: for the message.
            text: must be the same everywhere.

        Raises:
            ConfigError: naming the first process that differs from number 0.
        """
        written = np.frombuffer(text.encode(), dtype=np.uint8)
        texts = [each["text"].tobytes() for each in self.gather_arrays({"text": written})]
        for rank, other in enumerate(texts):
            if other != texts[0]:
                raise ConfigError(
                    f"process {rank} has another {what} than process 0; start all of them with "
                    "the same files and settings"
                )

    def _call(self, function: Callable[..., mx.array], array: mx.array) -> mx.array:
        """Communicate; where another process is known to be gone, raise an error that says so."""
        try:
            result = function(array, group=self._group)
            if self.waits:
                mx.eval(result)
            else:  # begun here, so that the messages of all processes have the same order
                mx.async_eval(result)
            return result
        except RuntimeError as error:
            if describe_device_problem(error):  # what was to be sent could not be computed
                raise
            raise TRMError(
                f"process {self.rank} of {self.size} has lost the others ({error}); one of them "
                "has ended, or the network; start all of them again with --resume"
            ) from error


def _patience() -> float:
    """Give the seconds that the others have to start.

    Raises:
        ConfigError: if the environment says something else.
    """
    text = os.environ.get(PATIENCE) or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 1e6:
        raise ConfigError(f"{PATIENCE}: must be a number of seconds above 0, not {shown(text)!r}")
    return seconds


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """End this process with a line where the block takes longer.

    MLX holds the interpreter's lock while it connects, so no thread or signal handler of Python can
    run. A fork of this process waits for the end of the block or of the time; then it writes the
    line and sends SIGINT, whose handler is C's ``_exit`` here: it is called with the signal's
    number, 2, which is the exit code for what the user can mend. Ctrl-C ends the process in the
    same way, which it would not do otherwise.
    """
    if not hasattr(os, "fork"):
        yield
        return
    line = (
        f"not all of the processes that were to train together have started within {seconds:g} s; "
        f"start all of them at about the same time, or let {PATIENCE} say how long to wait (see "
        "docs/distributed.md)\n"
    )
    parent = os.getpid()
    ends, done = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are threads: the fork computes nothing
        child = os.fork()
    if child == 0:
        try:
            os.close(done)
            if not select.select([ends], [], [], seconds)[0] and os.getppid() == parent:
                os.write(2, line.encode())
                os.kill(parent, signal.SIGINT)
        finally:
            os._exit(0)
    os.close(ends)
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    before = libc.signal(signal.SIGINT, ctypes.cast(getattr(libc, "_exit"), ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGINT, before)
        signal.siginterrupt(signal.SIGINT, True)  # as Python has it
        os.close(done)
        os.waitpid(child, 0)


def _one_host() -> bool:
    """Whether the list of hosts has a single entry, to which a ring cannot connect."""
    try:
        with open(os.environ["MLX_HOSTFILE"], encoding="utf-8") as file:
            return len(json.load(file)) == 1
    except (KeyError, OSError, ValueError, TypeError):
        return False
