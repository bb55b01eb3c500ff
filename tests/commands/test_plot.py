"""Pictures and tables of what runs have logged."""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import marks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from mlx_trm.__main__ import main
from mlx_trm.cli import charts
from mlx_trm.cli import run_logs as curves
from mlx_trm.cli.charts import MOST_POINTS, layout, plan
from mlx_trm.cli.run_logs import Curves, RunLog, find_log, read_log, read_runs, smooth, thin
from mlx_trm.errors import DataError
from mlx_trm.training.trainer import Trainer


def train(step: int, **changes: Any) -> Dict[str, Any]:
    """A line of training."""
    line = {
        "kind": "train",
        "count": 8.0,
        "accuracy": 0.5,
        "exact_accuracy": 0.25,
        "q_halt_accuracy": 0.75,
        "steps": 3.5,
        "lm_loss": 2.0 / max(step, 1),
        "q_halt_loss": 0.1,
        "step": step,
        "total": 100,
        "lr": 1e-4,
        "steps_per_second": 12.345,
        "peak_memory": 3 << 30,
    }
    return {**line, **changes}


def evaluation(step: int, subset: str = "all", **changes: Any) -> Dict[str, Any]:
    """A line of an evaluation."""
    line = {
        "kind": "eval",
        "step": step,
        "set": subset,
        "count": 100.0,
        "accuracy": 0.6,
        "exact_accuracy": 0.2,
        "steps": 16.0,
        "lm_loss": 0.5,
        "exact_accuracy_low": 0.1,
        "exact_accuracy_high": 0.3,
    }
    return {**line, **changes}


def write(run: Path, lines: Sequence[Any], end: str = "") -> Path:
    """Write a run's log; give the folder."""
    run.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + end, encoding="utf-8")
    return run


def read(run: Path) -> RunLog:
    """The log of a run."""
    return read_log(run / "metrics.jsonl", run.name)


# Reading ----------------------------------------------------------------------------------------


def test_reading(tmp_path: Path) -> None:
    """Training and each set apart; what is not measured is not a metric."""
    lines = [train(10), train(20, lm_loss=0.5), evaluation(20), evaluation(20, "other", a=0.5)]
    log = read(write(tmp_path / "a", lines + [{"kind": "note", "text": "x"}]))
    assert log.train.steps.tolist() == [10, 20]
    assert log.train.values["lm_loss"].tolist() == [0.2, 0.5]
    assert list(log.evals) == ["all", "other"] and log.evals["other"].values["a"].tolist() == [0.5]
    assert not {"kind", "step", "set", "total"} & set(log.metrics())
    assert log.metrics()[:2] == ["count", "accuracy"] and log.metrics()[-1] == "a"
    assert not log.cut


def test_values_that_are_none(tmp_path: Path) -> None:
    """NaN, text, null and bool leave gaps; a metric that comes later is NaN before."""
    lines = [train(10, lr="x"), train(20, lr=math.nan, new=1), train(30, lr=True), train(40)]
    values = read(write(tmp_path / "a", lines)).train.values
    np.testing.assert_array_equal(values["lr"], [np.nan, np.nan, np.nan, 1e-4])
    np.testing.assert_array_equal(values["new"], [np.nan, 1, np.nan, np.nan])


def test_a_metric_that_is_never_a_number_is_none(tmp_path: Path) -> None:
    """It is not listed."""
    log = read(write(tmp_path / "a", [train(10, lr=math.inf, big=10**400, far=1e200)]))
    assert not {"lr", "big", "far"} & set(log.metrics())


def test_a_line_in_which_no_puzzle_halted(tmp_path: Path) -> None:
    """Its means are no means; its losses are."""
    zero = {"count": 0.0, "accuracy": 0.0, "exact_accuracy": 0.0, "steps": 0.0}
    values = read(write(tmp_path / "a", [train(10, **zero), train(20)])).train.values
    for name in ("accuracy", "exact_accuracy", "steps"):
        assert np.isnan(values[name]).tolist() == [True, False]
    assert values["lm_loss"].tolist() == [0.2, 0.1]


def test_steps_that_were_done_again(tmp_path: Path) -> None:
    """The later line counts, in training and in evaluations."""
    lines = [train(step, lr=1.0) for step in (10, 20, 30, 40)] + [evaluation(40, accuracy=0.1)]
    lines += [train(step, lr=2.0) for step in (30, 40, 50)] + [evaluation(40, accuracy=0.9)]
    log = read(write(tmp_path / "a", lines))
    assert log.train.steps.tolist() == [10, 20, 30, 40, 50]
    assert log.train.values["lr"].tolist() == [1, 1, 2, 2, 2]
    assert log.evals["all"].values["accuracy"].tolist() == [0.9]


@pytest.mark.parametrize("end", ['{"kind": "tra', '{"kind": "train", "lm_loss": 0.0', "\xff{", "5"])
def test_a_last_line_that_was_cut_off(
    end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is left out, with a note that -q hides."""
    run = write(tmp_path / "a", [train(10)])
    (run / "metrics.jsonl").open("ab").write(end.encode("latin-1"))
    log = read(run)
    assert log.cut and log.train.steps.tolist() == [10]
    assert main(["plot", str(run), "--table"]) == 0
    note = f"{run / 'metrics.jsonl'}: its last line was cut off and is left out\n"
    assert capsys.readouterr().err == note
    assert main(["plot", str(run), "--table", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_a_last_line_without_an_end(tmp_path: Path) -> None:
    """It counts where it is whole; blank lines do not matter."""
    log = read(write(tmp_path / "a", [train(10)], "\n  \n" + json.dumps(train(20))))
    assert log.train.steps.tolist() == [10, 20] and not log.cut


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{,}", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("\xff", "is not UTF-8"),
        ("[1]", "is no line of a log, which has a kind"),
        ('{"step": 1}', "is no line of a log, which has a kind"),
        ('{"kind": "train"}', "has no step"),
        ('{"kind": "eval", "step": "3"}', "has no step"),
        ('{"kind": "eval", "step": -3}', "has no step"),
    ],
)
def test_a_bad_line_in_the_middle(line: str, problem: str, tmp_path: Path) -> None:
    """Its number and what to do."""
    path = tmp_path / "metrics.jsonl"
    good = json.dumps(train(10)) + "\n"
    path.write_bytes((good + line + "\n" + good).encode("latin-1"))
    with pytest.raises(DataError) as caught:
        read_log(path, "a")
    assert str(caught.value) == f"{path}:2: {problem}; mend the line, or take it out"


@pytest.mark.parametrize("text", ["", "\n", '{"kind": "note"}\n', '{"kind": "train", "step": 1}\n'])
def test_a_log_without_metrics(text: str, tmp_path: Path) -> None:
    """One line."""
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(DataError, match="metrics.jsonl: holds no metrics; a run writes them every"):
        read(tmp_path)


def test_finding_a_log(tmp_path: Path) -> None:
    """A run folder or the file; a checkpoint's folder gets a hint."""
    run = write(tmp_path / "a", [train(10)])
    (run / "step_10").mkdir()
    assert find_log(str(run)) == find_log(str(run / "metrics.jsonl")) == run / "metrics.jsonl"
    with pytest.raises(DataError, match=f"step_10: holds no metrics.jsonl; did you mean {run}?"):
        find_log(str(run / "step_10"))
    with pytest.raises(DataError, match="holds no metrics.jsonl; name the folder of a run"):
        find_log(str(tmp_path))
    with pytest.raises(DataError, match="nope: no such run; name a run folder, or a metrics.jsonl"):
        find_log("nope")
    with pytest.raises(DataError, match="cannot be read"):
        find_log("n" * 300)


def test_names_tell_runs_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder, with what is above it where two are called alike; the same run once."""
    monkeypatch.chdir(tmp_path)
    for name in ("x/one", "y/one", "two\n"):
        write(Path(name), [train(10)])
    Path("link").symlink_to("two\n")
    assert [log.name for log in read_runs(["x/one", "two\n", "./x/one", "link"])] == ["one", "two?"]
    assert [log.name for log in read_runs(["x/one", "y/one"])] == ["x/one", "y/one"]
    Path("two\n/old.jsonl").write_text(json.dumps(train(5)))
    names = [log.name for log in read_runs(["two\n", "two\n/old.jsonl"])]
    assert names == ["metrics.jsonl", "old.jsonl"]


# Fewer points -----------------------------------------------------------------------------------


def test_smoothing() -> None:
    """A mean over so many lines, fewer at the beginning; gaps stay and are not counted."""
    values = np.array([1.0, 3.0, np.nan, 5.0, 9.0])
    held = Curves(np.arange(5.0), {"a": values})
    np.testing.assert_allclose(smooth(held, 3).values["a"], [1, 2, np.nan, 4, 7])
    assert smooth(held, 1) is held
    np.testing.assert_allclose(smooth(held, 99).values["a"], [1, 2, np.nan, 3, 4.5])


def test_thinning() -> None:
    """Neighbours are averaged, the rest at the end too; gaps are left out."""
    steps, values = thin(np.arange(8.0), np.array([0, 2, np.nan, 4, 6, 8, 10, 12.0]), 3)
    np.testing.assert_allclose(steps, [4 / 3, 5, 7])
    np.testing.assert_allclose(values, [2, 8, 12])


@given(st.integers(1, 300), st.integers(1, 50))
def test_thinning_keeps_the_mean(count: int, most: int) -> None:
    """Whatever the numbers: few points, in order, and the sum over all of them stays."""
    steps, values = np.arange(float(count)), np.random.default_rng(count).normal(size=count)
    thin_steps, thin_values = thin(steps, values, most)
    assert 1 <= len(thin_values) <= most and np.all(np.diff(thin_steps) > 0)
    size = math.ceil(count / most)
    weights = np.full(len(thin_values), size)
    weights[-1] = count - size * (len(thin_values) - 1)
    assert np.sum(thin_values * weights) == pytest.approx(np.sum(values))
    assert np.sum(thin_steps * weights) == pytest.approx(np.sum(steps))


def test_a_long_log_has_few_points(tmp_path: Path) -> None:
    """Twenty thousand lines; the shape stays."""
    log = read(write(tmp_path / "a", [train(step) for step in range(1, 20001)]))
    (line,) = plan([log], ["lm_loss"])["loss"]
    assert MOST_POINTS / 2 < len(line.steps) <= MOST_POINTS
    np.testing.assert_allclose(line.values[50:], 2 / line.steps[50:], rtol=1e-3)


# What is drawn where ----------------------------------------------------------------------------


def drawn(logs: Sequence[RunLog], metrics: Optional[List[str]] = None) -> Dict[str, List[Any]]:
    """(metric, set) by panel."""
    return {
        panel: [(line.run, line.metric, line.subset) for line in lines]
        for panel, lines in plan(logs, metrics).items()
    }


def test_panels(tmp_path: Path) -> None:
    """One for each kind; the task's rates lie with the accuracy, other numbers are left out."""
    rates = {"valid_grids": 0.5, "ARC/pass@2": 0.25, "mean_length": 20.0}
    log = read(write(tmp_path / "a", [train(10), evaluation(10), evaluation(20, **rates)]))
    assert drawn([log]) == {
        "loss": [(0, "lm_loss", None), (0, "lm_loss", "all"), (0, "q_halt_loss", None)],
        "accuracy": [
            (0, "exact_accuracy", None),
            (0, "exact_accuracy", "all"),
            (0, "accuracy", None),
            (0, "accuracy", "all"),
            (0, "valid_grids", "all"),
            (0, "ARC/pass@2", "all"),
        ],
        "steps": [(0, "steps", None)],
        "lr": [(0, "lr", None)],
        "speed": [(0, "steps_per_second", None)],
        "memory": [(0, "peak_memory", None)],
    }
    assert drawn([log], ["mean_length", "count", "q_halt_accuracy"]) == {
        "accuracy": [(0, "q_halt_accuracy", None)],
        "other/mean_length": [(0, "mean_length", "all")],
        "other/count": [(0, "count", None), (0, "count", "all")],
    }


def test_a_count_is_no_rate(tmp_path: Path) -> None:
    """One puzzle is not 100 %."""
    log = read(write(tmp_path / "a", [evaluation(10, count=1.0)]))
    assert list(drawn([log], ["count"])) == ["other/count"]


def test_training_is_smoothed_and_evaluations_are_not(tmp_path: Path) -> None:
    """Each evaluation stands for itself."""
    lines = [train(10, lm_loss=1.0), evaluation(10, lm_loss=1.0)]
    lines += [train(20, lm_loss=2.0), evaluation(20, lm_loss=2.0)]
    first, second = plan([read(write(tmp_path / "a", lines))], ["lm_loss"], 2)["loss"]
    assert (first.values.tolist(), second.values.tolist()) == ([1, 1.5], [1, 2])


def test_panels_of_several_runs(tmp_path: Path) -> None:
    """All in the same panels; a run without a metric is not in its panel."""
    first = read(write(tmp_path / "a", [train(10)]))
    second = read(write(tmp_path / "b", [evaluation(10)]))
    held = drawn([first, second], ["lm_loss", "lr"])
    assert held == {"loss": [(0, "lm_loss", None), (1, "lm_loss", "all")], "lr": [(0, "lr", None)]}


def test_intervals(tmp_path: Path) -> None:
    """The interval of an evaluation goes with its values, and is no metric of its own."""
    log = read(write(tmp_path / "a", [evaluation(10), evaluation(20, exact_accuracy_low=0.15)]))
    (line,) = plan([log], ["exact_accuracy"])["accuracy"]
    assert line.low is not None and line.high is not None
    assert (line.low.tolist(), line.high.tolist()) == ([0.1, 0.15], [0.3, 0.3])
    lines = [evaluation(10), evaluation(20, exact_accuracy_low=None)]
    (line,) = plan([read(write(tmp_path / "b", lines))], ["exact_accuracy"])["accuracy"]
    assert line.low is None


def test_nothing_to_draw(tmp_path: Path) -> None:
    """Only what is drawn on request: one line."""
    log = read(write(tmp_path / "a", [{"kind": "train", "step": 1, "count": 3}]))
    with pytest.raises(DataError, match="metrics.jsonl: nothing to draw; --metrics chooses"):
        plan([log])


def test_layouts() -> None:
    """Loss and accuracy are large, and the others beside them; alone all are alike."""
    assert layout(list(charts.PANELS)) == [
        ["loss", "loss", "steps", "lr"],
        ["accuracy", "accuracy", "speed", "memory"],
    ]
    assert layout(["loss"]) == [["loss"]]
    assert layout(["loss", "accuracy"]) == [["loss", "accuracy"]]
    assert layout(["loss", "lr", "speed"]) == [["loss", "loss", "lr", "speed"]]
    assert layout(["loss", "accuracy", "lr"]) == [
        ["loss", "loss", "lr"],
        ["accuracy", "accuracy", ""],
    ]
    assert layout(list("abcde")) == [["a", "b", "c"], ["d", "e", ""]]


# Pictures ---------------------------------------------------------------------------------------


@pytest.fixture(name="figure")
def make_figure(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draws runs and gives matplotlib's figure instead of a file."""
    pytest.importorskip("matplotlib")
    kept: List[Any] = []
    monkeypatch.setattr(charts, "write_figure", lambda figure, *_: kept.append(figure))

    def draw(logs: Sequence[RunLog], metrics: Optional[List[str]] = None) -> Dict[str, Any]:
        charts.save_chart(Path("unused.png"), logs, plan(logs, metrics))
        kept[-1].canvas.draw()
        return {"figure": kept[-1], **{axes.get_title(): axes for axes in kept[-1].axes}}

    return draw


def texts(holder: Any) -> List[str]:
    """What a legend or a figure says."""
    return [text.get_text() for text in holder.texts]


def test_the_picture_of_a_run(figure: Any, tmp_path: Path) -> None:
    """Titles, values, units, scales, the band, and what the lines are."""
    lines = [train(10), train(20), evaluation(10, valid_grids=0.4), evaluation(20, valid_grids=0.5)]
    held = figure([read(write(tmp_path / "my_run", lines))])
    assert set(held) - {"figure"} == {
        "loss",
        "accuracy",
        "supervision steps until halting",
        "learning rate",
        "steps per second",
        "peak memory, GiB",
    }
    assert texts(held["figure"]) == ["my_run"]
    loss, accuracy, memory = held["loss"], held["accuracy"], held["peak memory, GiB"]
    assert loss.get_yscale() == "log" and accuracy.get_ylim() == (-0.02, 1.02)
    assert loss.lines[0].get_xydata().tolist() == [[10, 0.2], [20, 0.1]]
    assert memory.lines[0].get_ydata().tolist() == [3, 3] and memory.get_ylim()[0] == 0
    assert texts(accuracy.get_legend()) == [
        "exact_accuracy",
        "accuracy",
        "valid_grids",
        "in training",
        "evaluation",
    ]
    assert [line.get_marker() for line in accuracy.lines] == ["None", "o", "None", "o", "o"]
    colors = [line.get_color() for line in accuracy.lines]
    assert colors == ["C0", "C0", "C1", "C1", "C2"]
    (band,) = accuracy.collections
    box = band.get_paths()[0].get_extents()
    assert (box.x0, box.x1) == (10, 20) and (box.y0, box.y1) == pytest.approx((0.1, 0.3))


def test_the_picture_of_several_runs(figure: Any, tmp_path: Path) -> None:
    """A colour for each run, named once; sets differ by their markers."""
    first = read(write(tmp_path / "one", [train(10), evaluation(10), evaluation(10, "other")]))
    second = read(write(tmp_path / "_a$b", [train(10), train(30)]))
    held = figure([first, second])
    assert texts(held["figure"].legends[0]) == ["one", r" _a\$b"]
    handles = held["figure"].legends[0].legend_handles
    assert [handle.get_color() for handle in handles] == ["C0", "C1"]
    accuracy = held["accuracy"]
    assert {line.get_color() for line in accuracy.lines} == {"C0", "C1"}
    markers = {"None": 0, "o": 0, "s": 0}
    for line in accuracy.lines:
        markers[line.get_marker()] += 1
    assert markers == {"None": 4, "o": 2, "s": 2}
    assert texts(accuracy.get_legend())[2:] == [
        "in training",
        "evaluation: all",
        "evaluation: other",
    ]
    for axes in held["figure"].axes:
        assert axes.get_xlim() == pytest.approx((-0.6, 30.6))


def test_the_picture_of_one_metric(figure: Any, tmp_path: Path) -> None:
    """Its name is the title; one value is a point; little memory is in MiB."""
    log = read(write(tmp_path / "one", [train(0, lm_loss=1.0, peak_memory=5 << 20)]))
    held = figure([log], ["exact_accuracy", "peak_memory"])
    assert list(held)[1:] == ["exact_accuracy", "peak memory, MiB"]
    (line,) = held["peak memory, MiB"].lines
    assert line.get_marker() == "." and line.get_ydata().tolist() == [5]
    assert held["exact_accuracy"].get_legend() is None


def test_many_runs(figure: Any, tmp_path: Path) -> None:
    """Colours differ, and the legend has room."""
    logs = [read(write(tmp_path / f"{n:02d}_{'x' * 80}", [train(10)])) for n in range(30)]
    held = figure(logs, ["lr"])
    legend = held["figure"].legends[0]
    assert len({handle.get_color() for handle in legend.legend_handles}) == 30
    assert texts(legend)[3] == "..." + "x" * 57
    box = held["learning rate"].get_window_extent()
    assert box.height > 100 and box.width > 300
    assert legend.get_window_extent().y0 > box.y1


def png_size(path: Path) -> List[int]:
    """Width and height."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return [int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")]


def test_pictures_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into the run folder; of several runs here; a PDF where its name says so, always the same."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write(Path(name), [train(10), train(20), evaluation(20)])
    assert main(["plot", "a"]) == 0
    assert main(["plot", "b/metrics.jsonl", "-q"]) == 0
    assert main(["plot", "a", "b", "--metrics", "lr", "lm_loss"]) == 0
    assert main(["plot", "a", "--output", "c.PDF", "--smooth", "2"]) == 0
    out, err = capsys.readouterr()
    assert out == f"written: {Path('a/metrics.png')}\nwritten: metrics.png\nwritten: c.PDF\n"
    assert err == ""
    assert png_size(Path("a/metrics.png"))[0] > png_size(Path("metrics.png"))[0] > 1000
    assert Path("b/metrics.png").is_file()
    first = Path("c.PDF").read_bytes()
    assert first.startswith(b"%PDF") and b"CreationDate" not in first
    assert main(["plot", "a", "--output", "c.PDF", "--smooth", "2"]) == 0
    assert Path("c.PDF").read_bytes() == first
    found = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["c.PDF"] + ["metrics.jsonl"] * 2 + ["metrics.png"] * 3


def test_strange_names_make_no_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mathematics, and characters that the font lacks."""
    pytest.importorskip("matplotlib")
    run = write(tmp_path / "_$x^{$ \u6570\u72ec", [train(10, **{"$y_$": 0.5})])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["plot", str(run), "-q", "--metrics", "lr", "$y_$"]) == 0
    assert capsys.readouterr() == ("", "")
    assert png_size(run / "metrics.png")


def test_a_picture_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full half way leaves what was there."""
    figures = pytest.importorskip("matplotlib.figure")
    run = write(tmp_path / "a", [train(10)])
    (run / "metrics.png").write_bytes(b"before")

    def full(_figure: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures.Figure, "savefig", full)
    assert main(["plot", str(run)]) == 2
    path = run / "metrics.png"
    expected = f"--output {path}: cannot be written (No space left on device)\n"
    assert capsys.readouterr() == ("", expected)
    assert path.read_bytes() == b"before"
    assert sorted(p.name for p in run.iterdir()) == ["metrics.jsonl", "metrics.png"]


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what to install, before anything is read; a table needs none."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", "nope"]) == 2
    assert capsys.readouterr() == ("", 'plot: needs matplotlib; pip install "mlx_trm[plot]"\n')
    assert main(["plot", str(write(tmp_path / "a", [train(10)])), "--table"]) == 0
    assert "lm_loss" in capsys.readouterr().out


def test_no_state_of_pyplot(tmp_path: Path) -> None:
    """The command draws without pyplot, so it needs no display and leaves no figure open."""
    pytest.importorskip("matplotlib")
    run = write(tmp_path / "a", [train(10)])
    code = (
        "import sys; from mlx_trm.__main__ import main; "
        f"print(main(['plot', {str(run)!r}, '-q']), 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("0 False\n", "")


# The table --------------------------------------------------------------------------------------


def table(capsys: pytest.CaptureFixture[str], *words: str) -> List[str]:
    """The lines that ``--table`` prints."""
    assert main(["plot", *words, "--table"]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_table_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last values, as they are usually written."""
    lines = [train(10), train(20), evaluation(10, accuracy=0.1), evaluation(20)]
    run = str(write(tmp_path / "a", lines))
    assert table(capsys, run) == [
        "set       metric            value",
        "--------  ----------------  --------------------------",
        "train     step              20",
        "train     count             8",
        "train     accuracy          0.5000",
        "train     exact_accuracy    0.2500",
        "train     q_halt_accuracy   0.7500",
        "train     steps             3.50",
        "train     lm_loss           0.1000",
        "train     q_halt_loss       0.1000",
        "train     lr                1.00e-04",
        "train     steps_per_second  12.35",
        "train     peak_memory       3.0 GiB",
        "eval all  step              20",
        "eval all  count             100",
        "eval all  accuracy          0.6000",
        "eval all  exact_accuracy    0.2000  (0.1000 to 0.3000)",
        "eval all  steps             16.00",
        "eval all  lm_loss           0.5000",
    ]
    assert table(capsys, run, "--metrics", "lm_loss", "--smooth", "2")[2:] == [
        "train     step     20",
        "train     lm_loss  0.1500",
        "eval all  step     20",
        "eval all  lm_loss  0.5000",
    ]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["metrics.jsonl"]


def test_the_table_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column for each; a dash where a run has no value."""
    first = write(tmp_path / "one", [train(10), train(20, lr=math.nan), evaluation(20, "x")])
    second = write(tmp_path / "two", [train(30, lr=2e-4)])
    names = ["--metrics", "lr", "accuracy"]
    assert table(capsys, str(first), str(second), *names) == [
        "set     metric    one       two",
        "------  --------  --------  --------",
        "train   step      20        30",
        "train   accuracy  0.5000    0.5000",
        "train   lr        1.00e-04  2.00e-04",
        "eval x  step      20        -",
        "eval x  accuracy  0.6000    -",
    ]


def test_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--table`` draws where ``--output`` asks for it."""
    pytest.importorskip("matplotlib")
    run = str(write(tmp_path / "a", [train(10)]))
    assert table(capsys, run, "--output", str(tmp_path / "a.png"))[-1].startswith("written: ")
    assert png_size(tmp_path / "a.png")


# The rest ---------------------------------------------------------------------------------------


def test_unknown_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A suggestion, and what has been logged."""
    run = str(write(tmp_path / "a", [{"kind": "train", "step": 1, "lm_loss": 1.0, "lr": 1.0}]))
    assert main(["plot", run, "--table", "--metrics", "lr", "lm_los"]) == 2
    assert capsys.readouterr().err == (
        "--metrics: no run has 'lm_los'; did you mean 'lm_loss'? (logged: lm_loss, lr)\n"
    )


def test_a_place_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default place names the way out."""
    pytest.importorskip("matplotlib")
    run = write(tmp_path / "a", [train(10)])
    (run / "metrics.png").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "a"]) == 2
    assert capsys.readouterr().err == (
        f"{Path('a/metrics.png')}: cannot be written (it is a folder); "
        "name another place with --output\n"
    )


def test_the_log_of_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the trainer writes is what is read here; nothing of it is taken for something else."""
    config = marks.experiment(run_dir=str(tmp_path / "a"), train__max_steps=12)
    Trainer(config).fit()
    log = read(tmp_path / "a")
    assert log.train.steps.tolist() == [4, 8, 12] and list(log.evals) == ["all"]
    panels = plan([log])
    assert list(panels) == list(charts.PANELS)
    written = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").open()]
    losses = [line["lm_loss"] for line in written if line["kind"] == "train"]
    assert panels["loss"][0].values.tolist() == losses
    rows = [line.split() for line in table(capsys, str(tmp_path / "a"))]
    assert ["train", "step", "12"] in rows and ["eval", "all", "step", "12"] in rows
    assert set(curves.PER_PUZZLE) <= set(written[0])
