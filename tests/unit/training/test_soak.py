"""Ten thousand steps: neither memory nor the time of a step grows. In the slow set."""

import resource
import time
from typing import Any, List

import mlx.core as mx
import numpy as np
import pytest
from marks import experiment

from mlx_trm.training.trainer import Trainer

STEPS, EVERY = 10_000, 1_000


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["never", "always"])
def test_ten_thousand_steps(tmp_path: Any, monkeypatch: Any, compiled: str) -> None:
    """MLX's memory to the byte, the process's by a few MiB, step times by a factor of 1.5.

    What is compared are the second and the last thousand steps, so that nothing of the beginning
    counts. The figures are printed (``pytest -s``).
    """
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    config = experiment(
        run_dir=str(tmp_path / "run"), train__epochs=7500, eval__interval=250,
        train__max_steps=STEPS, train__compile=compiled, checkpoint__every=500,
    )  # fmt: skip
    trainer = Trainer(config)
    active: List[int] = []
    resident: List[int] = []
    times: List[float] = []

    def tick(step: int) -> None:
        times.append(time.perf_counter())
        if step % EVERY == 0:
            active.append(mx.get_active_memory())
            resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    report = trainer.fit(on_tick=tick)
    assert report.steps == STEPS and len(active) == STEPS // EVERY
    taken = np.diff(times)
    medians = [float(np.median(taken[at : at + EVERY - 1])) for at in range(0, STEPS, EVERY)]
    print(f"\nactive memory, bytes: {active}\nlargest resident, KiB: {resident}")
    print("median step, ms:", [round(1e3 * value, 3) for value in medians])
    assert active[-1] <= active[1] + 4096
    assert resident[-1] - resident[1] < 16 * 1024
    assert medians[-1] < 1.5 * medians[1]
