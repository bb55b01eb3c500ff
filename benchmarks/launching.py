"""Starts the processes of a measured command, one or several that train together, and ends them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, NoReturn, Optional, Sequence

from mlx_trm.errors import TRMError

# What a launcher above this program may have set, and its processes must not take for theirs.
LAUNCHED = ("MLX_RANK", "MLX_WORLD_SIZE", "MLX_HOSTFILE", "RANK", "WORLD_SIZE", "LOCAL_RANK")


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C in a ``with`` block: processes are ended, what is known is kept."""

    def interrupt(number: int, frame: object) -> NoReturn:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_ports(count: int) -> List[int]:
    """Find ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def visible_gpus() -> Optional[List[str]]:
    """Give the GPUs that this program may use, as ``CUDA_VISIBLE_DEVICES`` names them, or None."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def gpu_names(count: int) -> List[str]:
    """Give the names of the first GPUs of this program."""
    return (visible_gpus() or [str(number) for number in range(count)])[:count]


def together(count: int, gpu: bool, folder: Path) -> List[Dict[str, str]]:
    """Give the variables by which mlx_trm's processes find each other; see docs/distributed.md.

    Args:
        count: of processes; a single one needs none.
        gpu: one GPU each, over NCCL; else over the ring of the CPU.
        folder: for the list of hosts, which the ring reads.
    """
    if count == 1:
        return [{"CUDA_VISIBLE_DEVICES": gpu_names(1)[0]} if gpu else {}]
    if gpu:
        port = str(free_ports(1)[0])
        return [
            {"MLX_RANK": str(rank), "MLX_WORLD_SIZE": str(count), "NCCL_HOST_IP": "127.0.0.1",
             "NCCL_PORT": port, "CUDA_VISIBLE_DEVICES": name}
            for rank, name in enumerate(gpu_names(count))
        ]  # fmt: skip
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
    return [{"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in range(count)]


def torch_together(count: int, gpu: bool) -> List[Dict[str, str]]:
    """Give the variables by which PyTorch's processes find each other, as torchrun sets them."""
    port = str(free_ports(1)[0])
    found = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
         "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in range(count)
    ]  # fmt: skip
    if gpu:
        for variables, name in zip(found, gpu_names(count)):
            variables["CUDA_VISIBLE_DEVICES"] = name
    return found


class Group:
    """The processes of a command, each in a session of its own, so that Ctrl-C is ours alone.

    Attributes:
        started: the time before the first was started, of ``time.perf_counter``.
    """

    def __init__(
        self, command: Sequence[str], environments: Sequence[Dict[str, str]], messages: Path
    ) -> None:
        """Start a process for each environment.

        Args:
            command: of all of them.
            environments: variables of each.
            messages: a file that gets what they say.

        Raises:
            TRMError: if the command cannot be started.
        """
        self._messages = messages
        inherited = {name: v for name, v in os.environ.items() if name not in LAUNCHED}
        self._processes: List[subprocess.Popen] = []
        self.started = time.perf_counter()
        try:
            with messages.open("ab") as file:
                for variables in environments:
                    self._processes.append(
                        subprocess.Popen(  # pylint: disable=consider-using-with
                            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                            env={**inherited, **variables}, start_new_session=True,
                        )
                    )  # fmt: skip
        except OSError as error:
            self.kill()
            raise TRMError(f"{command[0]}: cannot be started ({error.strerror})") from error

    def running(self) -> bool:
        """Whether one of them still runs, and none has failed."""
        codes = [process.poll() for process in self._processes]
        return None in codes and not self.failed()

    def failed(self) -> bool:
        """Whether one of them has ended with another code than 0."""
        return any(process.poll() for process in self._processes)

    def check(self) -> None:
        """See that none has failed.

        Raises:
            TRMError: if one has, with what it said last.
        """
        if self.failed():
            raise TRMError(f"a process has ended: {self.last_words()}")

    def last_words(self) -> str:
        """Give the last line that they have said."""
        text = self._messages.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1] if lines else "no word"

    def finish(self) -> None:
        """Wait until all have ended; none is left where that is cut short.

        Raises:
            TRMError: if one has failed, with what it said last.
        """
        try:
            while self.running():
                time.sleep(0.05)
            self.check()
        finally:
            self.stop()

    def stop(self, patience: float = 60.0) -> None:
        """Ask them to end (SIGTERM), and end them where they do not."""
        self._signal(signal.SIGTERM)
        until = time.monotonic() + patience
        while time.monotonic() < until and any(p.poll() is None for p in self._processes):
            time.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        """End them at once, and what they have started."""
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        for process in self._processes:
            process.wait()

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                try:
                    process.send_signal(number)
                except ProcessLookupError:
                    pass


def train_command(words: Sequence[str]) -> List[str]:
    """Give the command that trains, with this interpreter."""
    return [sys.executable, "-m", "mlx_trm.train", *words]
