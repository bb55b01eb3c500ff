"""Ten thousand steps: neither memory nor the work of a step grows. In the slow set."""

import resource
from typing import Any, List

import mlx.core as mx
import pytest
from counting import Calls
from marks import experiment

from mlx_trm.training.trainer import Trainer

STEPS, EVERY = 10_000, 1_000


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["never", "always"])
def test_ten_thousand_steps(tmp_path: Any, monkeypatch: Any, compiled: str) -> None:
    """MLX's memory to the byte, the process's by a few MiB, the calls of a step by a few percent.

    What is compared are the second and the last thousand steps, so that nothing of the beginning
    counts. The figures are printed (``pytest -s``). Graphs that grew would grow in memory.
    """
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    config = experiment(
        run_dir=str(tmp_path / "run"), train__epochs=7500, eval__interval=250,
        train__max_steps=STEPS, train__compile=compiled, checkpoint__every=500,
    )  # fmt: skip
    trainer = Trainer(config)
    active: List[int] = []
    resident: List[int] = []
    counted: List[Calls] = []

    def tick(step: int) -> None:
        if step % EVERY == 100:
            counted.append(Calls().__enter__())
        elif step % EVERY == 200:
            counted[-1].__exit__()
        if step % EVERY == 0:
            active.append(mx.get_active_memory())
            resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    report = trainer.fit(on_tick=tick)
    assert report.steps == STEPS and len(active) == STEPS // EVERY
    calls = [each.count for each in counted]
    print(f"\nactive memory, bytes: {active}\nlargest resident, KiB: {resident}")
    print("calls of a hundred steps:", calls)
    assert active[-1] <= active[1] + 4096
    assert resident[-1] - resident[1] < 16 * 1024
    assert calls[1] > 1000 and calls[-1] < 1.05 * calls[1]
