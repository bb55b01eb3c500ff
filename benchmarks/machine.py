"""Asks what a machine is, in a process that leaves its GPU afterwards."""

import sys
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

from protocol import EVALUATES, TRAINS, Worker, WorkerError
from results import OURS

from mlx_trm.cli.running import default_device
from mlx_trm.errors import ConfigError
from mlx_trm.system.device import on_gpu

HERE = Path(__file__).resolve().parent
TRAINING = {"train", "overhead", "startup"}


def find_device(name: Optional[str]) -> str:
    """Give ``gpu`` or ``cpu``, by what was asked for and what is there.

    Raises:
        ConfigError: if a GPU was asked for and there is none.
    """
    with default_device(name):
        return "gpu" if on_gpu() else "cpu"


def our_worker(device: str, works: Sequence[str] = ()) -> Worker:
    """Start a worker of mlx_trm; see protocol.py.

    Args:
        device: ``gpu`` or ``cpu``.
        works: what it is going to do, all of one size and batch: where they are ``eval`` alone, or
            train, it is set up as the command that does. It is not where none are given.
    """
    command = [sys.executable, str(HERE / "worker.py")]
    if set(works) == {"eval"}:
        command.append(EVALUATES)
    elif TRAINING & set(works):
        command.append(TRAINS)
    return Worker(OURS, command + (["--gpu"] if device == "gpu" else []))


def ask_machine(
    device: str, dtype: Optional[str] = None
) -> Tuple[Dict[str, Any], Dict[str, float]]:
    """Give the device report, and the rates that floors come from.

    Args:
        device: ``gpu`` or ``cpu``.
        dtype: of the rates; without one they are not measured, and none are given.

    Raises:
        ConfigError: if MLX does not work here.
    """
    worker = our_worker(device)
    try:
        report = worker.call("ask", what="report")["answer"]
        rates = worker.call("ask", {"dtype": dtype}, what="rates")["answer"] if dtype else {}
        return report, rates
    except WorkerError as error:
        raise ConfigError(f"{error}; python -m mlx_trm.diagnose says more") from error
    finally:
        worker.close()
