"""Which messages between processes are waited for: those that tell of a loss, and no others."""

from types import SimpleNamespace
from typing import Any, List

import mlx.core as mx
import pytest
from marks import batches, experiment

from mlx_trm.models.carry import Batch
from mlx_trm.system import processes
from mlx_trm.system.processes import NCCL_VARIABLES, Processes
from mlx_trm.training.step import TrainStep
from mlx_trm.training.trainer import Trainer


@pytest.fixture(name="backends")
def record_backends(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """The backends that are asked for, where a launcher has set all of NCCL."""
    asked: List[str] = []

    def init(strict: bool, backend: str) -> Any:
        assert strict
        asked.append(backend)
        return SimpleNamespace(rank=lambda: 1, size=lambda: 2)

    monkeypatch.setattr(mx.distributed, "init", init)
    monkeypatch.setattr(processes, "on_cuda", lambda: True)
    for name in NCCL_VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)
    return asked


def test_nccl_is_asked_for_by_its_name(backends: List[str]) -> None:
    """So that nothing else is begun in its place, whose messages have to be waited for."""
    found = Processes.start()
    assert backends == ["nccl"] and (found.rank, found.size, found.waits) == (1, 2, False)


@pytest.mark.parametrize("missing", ["NCCL_HOST_IP", "NCCL_PORT", "MLX_WORLD_SIZE", "a GPU"])
def test_what_may_be_a_ring_is_waited_for(
    missing: str, backends: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX takes a ring where a variable of NCCL is empty or missing."""
    if missing == "a GPU":
        monkeypatch.setattr(processes, "on_cuda", lambda: False)
    else:
        monkeypatch.setenv(missing, "")
    found = Processes.start()
    assert backends == ["any"] and found.waits


@pytest.mark.parametrize("waits", [True, False])
def test_a_message_is_begun_at_once(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the program, which is the same in all processes."""
    of_two = Processes(waits=waits)
    of_two.size = 2
    done: List[str] = []
    for name in ("eval", "async_eval"):
        monkeypatch.setattr(mx, name, lambda *arrays, name=name: done.append(name))
    for name in ("all_gather", "all_sum"):
        monkeypatch.setattr(
            mx.distributed, name, lambda array, group, name=name: done.append(name) or array
        )
    one = mx.array([1.0])
    of_two.gather(one)
    of_two.sum({"a": one})
    how = "eval" if waits else "async_eval"
    assert done == ["all_gather", how, "all_sum", how]


@pytest.mark.parametrize("waits, size, evaluations", [(True, 3, 5), (False, 3, 1), (False, 1, 4)])
def test_how_often_a_step_waits(
    waits: bool, size: int, evaluations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With messages that need not be waited for once; and for each micro-batch, for its memory."""
    trainer = Trainer(experiment())
    of_two = Processes(waits=waits)
    of_two.size = 2
    twice = {"all_gather": lambda array, group: mx.concatenate([array, array]),
             "all_sum": lambda array, group: array + array}  # fmt: skip
    for name, function in twice.items():
        monkeypatch.setattr(mx.distributed, name, function)
    step = TrainStep(trainer.config, trainer.model, 10, of_two, size)
    batch = Batch(*(part[:3] for part in next(iter(batches(trainer, 1)))))
    evaluated: List[int] = []
    plain = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: (evaluated.append(1), plain(*arrays)))
    step(batch)
    assert len(evaluated) == evaluations
