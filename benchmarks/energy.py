"""Counts the energy that NVIDIA GPUs take, where they tell.

The driver's library counts joules since it was loaded; older GPUs tell their power only, which
``nvidia-smi`` prints five times a second and is added up here. Whole GPUs are counted, whoever
works on them, and nothing of the machine around them.
"""

import ctypes
import subprocess
import threading
import time
from typing import Any, Dict, List, Optional, Sequence

COUNTER, SAMPLES = "NVML, counter of energy", "nvidia-smi, power.draw, every 0.2 s"
SMI = "nvidia-smi --query-gpu=index,power.draw --format=csv,noheader,nounits -lms 200".split()
LIBRARY = "libnvidia-ml.so.1"


class Meter:
    """What some GPUs have taken since :meth:`__enter__`.

    Attributes:
        source: how it is known; None: it is not measured.
    """

    def __init__(self, gpus: Sequence[str]) -> None:
        """Find out how the GPUs can be asked.

        Args:
            gpus: numbers of them, as ``CUDA_VISIBLE_DEVICES`` has them; none: nothing is measured.
        """
        self.source: Optional[str] = None
        self._numbers = [int(name) for name in gpus if name.isdigit()]
        self._handles: List[Any] = []
        self._before: Optional[float] = None
        self._sampler: Optional[_Sampler] = None
        if gpus and len(self._numbers) == len(gpus):  # not by UUID
            self._find_source()

    def __enter__(self) -> "Meter":
        """Begin at nothing."""
        if self._handles:
            self._before = self._count()
        elif self.source:
            self._sampler = _Sampler(self._numbers)
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        if self._sampler is not None:
            self._sampler.close()

    def joules(self) -> Optional[float]:
        """Give what they have taken so far; None where it is not measured."""
        if self._before is not None:
            now = self._count()
            return None if now is None else now - self._before
        return None if self._sampler is None else self._sampler.joules()

    def limit(self) -> Optional[float]:
        """Give the watts that the driver lets them take together; None where it does not tell."""
        total = 0.0
        for handle in self._handles:
            found = ctypes.c_uint()
            if self._library.nvmlDeviceGetEnforcedPowerLimit(handle, ctypes.byref(found)):
                return None
            total += found.value / 1000
        return total or None

    def _find_source(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
            handles = [ctypes.c_void_p() for _ in self._numbers]
            codes = [self._library.nvmlInit_v2()]
            for number, handle in zip(self._numbers, handles):
                pointer = ctypes.byref(handle)
                codes.append(self._library.nvmlDeviceGetHandleByIndex_v2(number, pointer))
            self._handles = handles
            if not any(codes) and self._count():
                self.source = COUNTER
                return
        except (OSError, AttributeError):
            pass
        self._handles = []
        try:
            found = subprocess.run(
                [*SMI[:-2], f"--id={self._numbers[0]}"], capture_output=True, text=True, check=False
            )
        except OSError:
            return
        if any(_read_sample(line) is not None for line in found.stdout.splitlines()):
            self.source = SAMPLES

    def _count(self) -> Optional[float]:
        """Add up the counters, in joules; None if one cannot be read."""
        total = 0.0
        for handle in self._handles:
            found = ctypes.c_ulonglong()
            if self._library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(found)):
                return None
            total += found.value / 1000
        return total


class _Sampler:
    """Adds up what ``nvidia-smi`` prints."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._last: Dict[int, float] = {}
        self._joules = 0.0
        self._process = subprocess.Popen(  # pylint: disable=consider-using-with
            SMI, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            sample = _read_sample(line)
            if sample is None or int(sample[0]) not in self._numbers:
                continue
            now, number = time.perf_counter(), int(sample[0])
            self._joules += sample[1] * (now - self._last.get(number, now))
            self._last[number] = now

    def joules(self) -> Optional[float]:
        """Give the sum; None before every GPU has told its power twice."""
        return self._joules if self._joules and len(self._last) == len(self._numbers) else None

    def close(self) -> None:
        """End the program."""
        self._process.terminate()
        self._process.wait()
        self._thread.join(timeout=5)
        if self._process.stdout is not None:
            self._process.stdout.close()


def _read_sample(line: str) -> Optional[List[float]]:
    """Read a GPU's number and its power in watts; None where it tells none."""
    try:
        number, power = line.split(",")
        return [int(number), float(power)]
    except ValueError:
        return None
