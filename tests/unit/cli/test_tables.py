"""What the commands print while they work."""

import pytest

from mlx_trm.cli import tables
from mlx_trm.cli.progress import Estimate, Progress
from mlx_trm.runs.metrics import StepReport


def report(step: int) -> StepReport:
    metrics = {"lm_loss": 1.23456, "exact_accuracy": 0.5}
    return StepReport(step, 40, metrics, 1e-4, 2.0, 3 << 30)


def test_table_columns_are_as_wide_as_their_longest_entry():
    text = tables.table([("a", "long entry"), ("longer", "b")], ("x", "y"))
    assert text.splitlines() == [
        "x       y",
        "------  ----------",
        "a       long entry",
        "longer  b",
    ]
    assert tables.table([("a", "b")]) == "a  b"


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0s"), (59.4, "59s"), (61, "1m01s"), (3599.7, "1h00m"), (7380, "2h03m")]
)
def test_duration(seconds, text):
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(
    "count, text", [(1 << 20, "1.0 MiB"), (5 << 29, "2.5 GiB"), (0, "0.0 MiB")]
)
def test_size(count, text):
    assert tables.size(count) == text


def test_metric_rows_put_the_interval_beside_the_exact_accuracy():
    values = {
        "count": 32.0,
        "exact_accuracy": 0.5,
        "exact_accuracy_low": 0.33629,
        "exact_accuracy_high": 0.66371,
        "steps": 16.0,
        "accuracy": 0.987654,
    }
    assert tables.metric_rows({"all": values}) == [
        ("all", "count", "32"),
        ("all", "exact_accuracy", "0.5000  (95 % interval 0.3363 to 0.6637)"),
        ("all", "steps", "16.00"),
        ("all", "accuracy", "0.9877"),
    ]


def test_lines_where_there_is_no_terminal(capsys):
    progress = Progress(40, seconds_between_lines=0)
    progress.tick(9)
    progress.step(report(10))
    progress.evaluating(3, 8)
    progress.evaluation({"step": 10, "metrics": {"all": {"exact_accuracy": 0.25, "accuracy": 0.5}}})
    progress.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "step 9/40",
        "step 10/40  loss 1.2346  exact 0.500  mem 3.0 GiB  lr 1.00e-04  2.00 steps/s  15s left",
        "evaluating: 3/8 puzzles",
        "evaluation at step 10  all: exact 0.2500  accuracy 0.5000",
    ]


def test_lines_are_far_between_but_the_last_step_is_shown(capsys):
    progress = Progress(40, seconds_between_lines=1e9)
    for step in (10, 20, 40):
        progress.tick(step)
        progress.step(report(step))
    assert [line[:10] for line in capsys.readouterr().err.splitlines()] == ["step 40/40"]


def test_quiet_shows_nothing(capsys):
    progress = Progress(40, quiet=True, seconds_between_lines=0)
    progress.tick(1)
    progress.step(report(40))
    progress.evaluating(1, 2)
    progress.evaluation({"step": 1, "metrics": {"all": {}}})
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_a_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress(40)
    progress.step(report(10))
    progress.tick(10)
    progress.evaluating(3, 8)
    progress.evaluating(8, 8)
    progress.line("a line of its own")
    progress.tick(40)
    progress.close()
    shown = capsys.readouterr().err
    assert "40/40" in shown and "loss=1.2346" in shown
    assert "evaluating" in shown and "a line of its own" in shown


def clock_of(*times):
    """Give these times one after the other."""
    return iter(times).__next__


@pytest.mark.parametrize(
    "seconds, said",
    [(0.3, "1 seconds"), (90, "90 seconds"), (600, "10 minutes"), (7200, "2 hours"),
     (11 * 86400, "11 days"), (3e8, "10 years")],
)  # fmt: skip
def test_durations_as_people_say_them(seconds, said):
    assert tables.rough_duration(seconds) == said


def test_how_long_a_run_takes_is_said_once_from_its_first_steps():
    estimate = Estimate(10_000, clock=clock_of(0.0, 3.0, 3.5, 103.0, 103.0))
    said = [estimate.tick() for _ in range(4)]
    assert said[:2] == [None, None] and said[3] is None
    assert said[2].startswith(
        "the run takes about 6 days, 50 s a step, without evaluations; try tr"
    )


def test_a_long_first_step_tells_if_it_did_not_compile():
    assert "about 3 days" in Estimate(10_001, clock=clock_of(0.0, 30.0)).tick()
    compiled = Estimate(10_002, compiled=True, clock=clock_of(0.0, 30.0, 30.1, 31.1))
    said = [compiled.tick() for _ in range(3)]
    assert said[:2] == [None, None] and said[2].startswith("the run takes about 92 minutes, 0.55 s")
    assert "try" not in said[2]


def test_a_long_step_is_foreseen():
    estimate = Estimate(1000, clock=clock_of(0.0, 300.0))
    assert estimate.foresee(None) is None and estimate.foresee(3.0) is None
    said = estimate.foresee(240.0)
    assert said.startswith("the run takes about 3 days, 4 minutes a step, without evaluations; try")
    assert estimate.tick() is None  # once


def test_a_short_run_or_one_that_ends_by_itself_needs_no_estimate():
    assert Estimate(2, clock=clock_of(0.0, 25.0)).tick() is None
    assert Estimate(10_000, limit=3600.0, clock=clock_of(0.0, 25.0)).tick() is None


def test_the_estimate_is_a_line_of_the_progress(capsys):
    estimate = Estimate(500, clock=clock_of(0.0, 40.0))
    Progress(500, estimate=estimate, seconds_between_lines=1e9).tick(1)
    assert capsys.readouterr().err.startswith("the run takes about 6 hours, 40 s a step")
