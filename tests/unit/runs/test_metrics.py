"""Run folders: their names, and what a line of the metrics log says."""

import json
import math
from pathlib import Path
from typing import Any, Dict, List

import mlx.core as mx
import pytest

from mlx_trm.config.sections import CheckpointConfig
from mlx_trm.errors import CheckpointError
from mlx_trm.runs.folder import free_run_dir
from mlx_trm.runs.metrics import MetricsLog, StepReport


def sums(**values: float) -> Dict[str, mx.array]:
    return {name: mx.array(value) for name, value in values.items()}


ONE = sums(count=2.0, exact_accuracy=1.0, accuracy=1.5, steps=9.0, lm_loss=4.0, q_halt_loss=1.0)
TWO = sums(count=6.0, exact_accuracy=1.0, accuracy=2.5, steps=15.0, lm_loss=8.0, q_halt_loss=3.0)


def test_losses_are_per_row_and_the_rest_per_puzzle_that_halted(tmp_path: Path) -> None:
    """Losses sum over all rows of the steps, the other metrics over the puzzles counted."""
    reports: List[StepReport] = []
    log = MetricsLog(
        tmp_path / "m.jsonl", batch_size=8, interval=2, total=5, on_step=reports.append
    )
    log.add(1, ONE, 1e-4)
    assert not reports
    log.add(2, TWO, 2e-4)
    (report,) = reports
    assert report.metrics == pytest.approx(
        {
            "count": 8.0,
            "exact_accuracy": 2 / 8,
            "accuracy": 4 / 8,
            "steps": 24 / 8,
            "lm_loss": 12 / 16,
            "q_halt_loss": 4 / 16,
        }
    )
    assert (report.step, report.total, report.lr) == (2, 5, 2e-4)
    assert report.steps_per_second > 0


def test_every_report_starts_anew_and_is_a_line(tmp_path: Path) -> None:
    """The last, shorter interval is averaged over its own steps."""
    log = MetricsLog(tmp_path / "m.jsonl", batch_size=8, interval=2, total=3)
    for step, metrics in enumerate((ONE, ONE, TWO), start=1):
        log.add(step, metrics, 1e-4)
    log.report()
    log.report()
    log.write({"kind": "eval", "step": 3})
    lines: List[Dict[str, Any]] = [json.loads(line) for line in (tmp_path / "m.jsonl").open()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 2),
        ("train", 3),
        ("eval", 3),
    ]
    assert lines[0]["lm_loss"] == pytest.approx(8 / 16)
    assert lines[1]["lm_loss"] == pytest.approx(8 / 8)
    assert lines[1]["steps"] == pytest.approx(15 / 6)


def test_no_puzzle_halted(tmp_path: Path) -> None:
    """Nothing is divided by zero, and nothing is said that was not measured: null in the file."""
    reports: List[StepReport] = []
    log = MetricsLog(tmp_path / "m.jsonl", 8, 1, 1, reports.append)
    log.add(1, {**ONE, **sums(count=0.0, exact_accuracy=0.0, accuracy=0.0, steps=0.0)}, 1e-4)
    assert math.isnan(reports[0].metrics["accuracy"])
    line = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["accuracy"] is None and line["count"] == 0 and line["lm_loss"] is not None


def test_a_log_has_numbers_of_json_only(tmp_path: Path) -> None:
    """Neither NaN nor infinity, wherever they stand."""
    log = MetricsLog(tmp_path / "m.jsonl", 8, 1, 1)
    log.write({"kind": "eval", "a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 1.5})
    line = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"kind": "eval", "a": None, "b": [None, {"c": None}], "d": 1.5}


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """One line names the file."""
    log = MetricsLog(tmp_path / "gone" / "m.jsonl", 8, 1, 1)
    with pytest.raises(CheckpointError, match=r"m\.jsonl: cannot be written"):
        log.write({"kind": "eval"})


def test_free_run_dir_counts_up(tmp_path: Path) -> None:
    """A file or a broken link takes a name as well as a folder does."""
    assert free_run_dir("a", tmp_path) == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").write_text("")
    (tmp_path / "a-3").symlink_to("nowhere")
    assert free_run_dir("a", tmp_path) == tmp_path / "a-4"


@pytest.mark.parametrize(
    "every, expected",
    [(None, (None, None)), (40, (40, None)), ("10min", (None, 600.0)), ("0.5min", (None, 30.0))],
)
def test_save_interval(every: Any, expected: Any) -> None:
    """Steps or seconds."""
    config = CheckpointConfig(every=every)
    assert (config.every_steps, config.every_seconds) == expected and not config.problems()
