"""Logs of runs that tests write and read."""

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from mlx_trm.drawing.run_logs import RunLog, read_log

MEANS = {"accuracy": 0.5, "exact_accuracy": 0.25, "q_halt_accuracy": 0.75, "steps": 3.5}
MACHINE = {"lr": 1e-4, "steps_per_second": 12.345, "peak_memory": 3 << 30}
INTERVAL = {"exact_accuracy_low": 0.1, "exact_accuracy_high": 0.3}


def train(step: int, **changes: Any) -> Dict[str, Any]:
    """A line of training."""
    losses = {"lm_loss": 2.0 / max(step, 1), "q_halt_loss": 0.1}
    where = {"step": step, "total": 100}
    return {"kind": "train", "count": 8.0, **MEANS, **losses, **where, **MACHINE, **changes}


def evaluation(step: int, subset: str = "all", **changes: Any) -> Dict[str, Any]:
    """A line of an evaluation."""
    means = {"count": 100.0, "accuracy": 0.6, "exact_accuracy": 0.2, "steps": 16.0, "lm_loss": 0.5}
    return {"kind": "eval", "step": step, "set": subset, **means, **INTERVAL, **changes}


def write(run: Path, lines: Sequence[Any], end: str = "") -> Path:
    """Write a run's log; give the folder."""
    run.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + end, encoding="latin-1")
    return run


def read(run: Path, lines: Sequence[Any], end: str = "") -> RunLog:
    """The log of a run, once written."""
    return read_log(write(run, lines, end) / "metrics.jsonl", run.name)


def points(log: RunLog, part: str, metric: str) -> List[Tuple[float, float]]:
    """The steps and values of a metric."""
    return list(zip(*(numbers.tolist() for numbers in log.parts[part][metric])))
