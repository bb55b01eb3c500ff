"""Pictures and tables of what runs have logged."""

import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any, List, Sequence, Tuple

import marks
import numpy as np
import pytest
from logged import evaluation, points, read, train, write

from mlx_trm.__main__ import main
from mlx_trm.drawing.charts import FIRST, LAST, MOST_POINTS, choose_metrics, draw_chart
from mlx_trm.drawing.run_logs import PER_PUZZLE, RunLog, read_runs
from mlx_trm.errors import DataError
from mlx_trm.training.trainer import Trainer


def test_what_one_usually_looks_at(tmp_path: Path) -> None:
    """Losses, accuracies, what else is measured, the machine; of all runs together."""
    first = read(tmp_path / "a", [train(10, extra=1.0), evaluation(10)])
    second = read(tmp_path / "b", [evaluation(10, valid_grids=0.5)])
    assert choose_metrics([first, second]) == [*FIRST, "extra", "valid_grids", *LAST]
    bare = read(tmp_path / "c", [{"kind": "train", "step": 1, "count": 3}])
    with pytest.raises(DataError, match="metrics.jsonl: nothing to draw; --metrics chooses"):
        choose_metrics([bare])


def draw(logs: Sequence[RunLog], *metrics: str) -> Any:
    """Matplotlib's figure, its legend's texts, and its panels by their titles."""
    pytest.importorskip("matplotlib")
    figure: Any = draw_chart(logs, metrics or choose_metrics(logs))
    figure.draw_without_rendering()
    texts = [text.get_text() for text in figure.legends[0].texts]
    return figure, texts, {axes.get_title(): axes for axes in figure.get_axes() if axes.axison}


def test_the_picture_of_a_run(tmp_path: Path) -> None:
    """Titles, values, units, scales, the band, and what the lines are."""
    lines = [train(10), train(200), evaluation(10), evaluation(200, valid_grids=0.5)]
    _, texts, panels = draw([read(tmp_path / "my_run", lines)])
    names = ("lm_loss", "q_halt_loss", "exact_accuracy", "accuracy", "valid_grids")
    others = ("supervision steps until halting", "learning rate", "steps per second")
    assert tuple(panels) == (*names, *others, "peak memory, GiB")
    assert texts == ["my_run", "train", "eval all"]
    loss, exact, memory = panels["lm_loss"], panels["exact_accuracy"], panels["peak memory, GiB"]
    assert loss.get_yscale() == "log" and panels["q_halt_loss"].get_yscale() == "linear"
    assert loss.lines[0].get_xydata().tolist() == [[10, 0.2], [200, 0.01]]
    assert memory.lines[0].get_ydata().tolist() == [3, 3] and -1 < memory.get_ylim()[0] < 0
    assert [line.get_marker() for line in exact.lines] == ["None", "o"]
    assert exact.lines[1].get_zorder() > exact.lines[0].get_zorder()
    assert len(panels["supervision steps until halting"].lines) == 1
    (band,) = exact.collections
    box = band.get_paths()[0].get_extents()
    assert (box.x0, box.x1) == (10, 200) and (box.y0, box.y1) == pytest.approx((0.1, 0.3))
    assert {axes.get_xlim() for axes in panels.values()} == {(-10, 210)}


def test_an_interval_that_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    """Not even where some of the evaluations have one."""
    lines = [evaluation(10), evaluation(20, exact_accuracy_low=None)]
    _, _, panels = draw([read(tmp_path / "a", lines)], "exact_accuracy")
    assert not panels["exact_accuracy"].collections and panels["exact_accuracy"].lines


def test_the_picture_of_several_runs(tmp_path: Path) -> None:
    """A colour for each run, a marker for each set; a run without a metric is not in its panel."""
    first = read(tmp_path / "one", [train(10), evaluation(10), evaluation(10, "other")])
    second = read(tmp_path / "_a$b", [train(10), train(30)])
    figure, texts, panels = draw([first, second], "accuracy", "lr", "exact_accuracy_low")
    assert texts == ["one", r" _a\$b", "train", "eval all", "eval other"]
    colors = [handle.get_color() for handle in figure.legends[0].legend_handles[:2]]
    lines = panels["accuracy"].lines
    assert [colors.index(line.get_color()) for line in lines] == [0, 0, 0, 1]
    assert [line.get_marker() for line in lines] == [".", "o", "s", "None"]
    assert len(panels["learning rate"].lines) == 2 and len(panels["exact_accuracy_low"].lines) == 2


@pytest.mark.parametrize("count, shape", [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (7, (3, 3))])
def test_the_grid(count: int, shape: Tuple[int, int], tmp_path: Path) -> None:
    """Three panels in a row, in the order they were asked for; places that are left are empty."""
    names = [f"m{number}" for number in range(count)]
    log = read(tmp_path / "a", [train(10, **dict.fromkeys(names, 1.0))])
    figure, _, panels = draw([log], *reversed(names))
    assert list(panels) == names[::-1]
    grid = figure.get_axes()[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == shape and len(figure.get_axes()) == shape[0] * shape[1]


def test_numbers_of_all_sizes(tmp_path: Path) -> None:
    """Zeros, negative numbers, a range that is wide or very wide, little memory, step 0."""
    first = {"zero": 0, "below": -2, "a_loss": 20.0, "b_loss": 1e6, "peak_memory": 5 << 20}
    second = {**first, "below": 3, "a_loss": 1.0, "b_loss": 1.0}
    log = read(tmp_path / "a", [train(0, **first), train(1, **second)])
    _, _, panels = draw([log], *first)
    assert panels["zero"].get_ylim()[1] > 1 and panels["below"].get_ylim()[0] < -2
    labels = {
        name: [tick.get_text() for tick in axes.get_yticklabels()] for name, axes in panels.items()
    }
    assert {"1", "2", "5", "10", "20"} <= set(labels["a_loss"])
    assert "10^{6}" in "".join(labels["b_loss"])
    assert panels["peak memory, MiB"].lines[0].get_ydata().tolist() == [5, 5]


def test_a_long_log_has_few_points(tmp_path: Path) -> None:
    """Twenty thousand lines; the shape stays."""
    _, _, panels = draw([read(tmp_path / "a", [train(n) for n in range(1, 20001)])], "lm_loss")
    steps, values = panels["lm_loss"].lines[0].get_data()
    assert MOST_POINTS / 2 < len(steps) <= MOST_POINTS
    np.testing.assert_allclose(values[50:], 2 / steps[50:], rtol=1e-3)


@pytest.mark.parametrize("count", [3, 12, 30])
def test_many_runs(count: int, tmp_path: Path) -> None:
    """Colours differ, and the legend has room above the panel, however long the names."""
    logs = [read(tmp_path / f"{'x' * 80}_{n:02d}", [train(10)]) for n in range(count)]
    figure, texts, panels = draw(logs, "lr")
    colors = [handle.get_color() for handle in figure.legends[0].legend_handles[:count]]
    assert len(set(colors)) == count and texts[2] == "..." + "x" * 54 + "_02"
    panel = panels["learning rate"].get_window_extent()
    legend = figure.legends[0].get_window_extent()
    assert panel.height > 150 and panel.width > 300
    assert legend.y0 > panel.y1 and 0 <= legend.x0 < legend.x1 <= figure.bbox.x1


def test_pictures_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into the run folder; of several runs here; without pyplot, which may want a display."""
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write(Path(name), [train(10), train(20), evaluation(20)])
    assert main(["plot", "a"]) == 0
    assert main(["plot", "b/metrics.jsonl", "-q"]) == 0
    assert main(["plot", "a", "b", "--metrics", "lr", "lm_loss"]) == 0
    expected = f"written: {Path('a/metrics.png')}\nwritten: metrics.png\n"
    assert capsys.readouterr() == (expected, "")
    found = sorted(tmp_path.rglob("*.*"))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        *("a/metrics.jsonl", "a/metrics.png", "b/metrics.jsonl", "b/metrics.png", "metrics.png")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in found if path.suffix == ".png")


@pytest.mark.parametrize(
    "name, start, date", [("a.PDF", b"%PDF", b"CreationDate"), ("a.svg", b"<?xml", b"dc:date")]
)
def test_a_picture_for_print(name: str, start: bytes, date: bytes, tmp_path: Path) -> None:
    """A PDF or SVG where the name says so; the same bytes tomorrow."""
    pytest.importorskip("matplotlib")
    run, path = write(tmp_path / "a", [train(10), train(20)]), tmp_path / name
    contents = []
    for _ in range(2):
        assert main(["plot", str(run), "--output", str(path), "-q"]) == 0
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] and contents[0].startswith(start)
    assert date not in contents[0] and not (run / "metrics.png").exists()


def test_strange_names_make_no_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mathematics, and characters that the font lacks."""
    pytest.importorskip("matplotlib")
    run = write(tmp_path / "_$x^{$ \u6570\u72ec", [train(10, **{"$y_$": 0.5})])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["plot", str(run), "-q", "--metrics", "lr", "$y_$"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (run / "metrics.png").is_file()


def test_a_picture_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full half way leaves what was there."""
    pytest.importorskip("matplotlib")
    run = write(tmp_path / "a", [train(10)])
    path = run / "metrics.png"
    path.write_bytes(b"before")

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["plot", str(run)]) == 2
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


# The table --------------------------------------------------------------------------------------


def table(capsys: pytest.CaptureFixture[str], *words: Any) -> List[str]:
    """The lines that ``--table`` prints."""
    assert main(["plot", *map(str, words), "--table"]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_table_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last values, as they are usually written; no picture is drawn."""
    lines = [train(10), train(20), evaluation(10, accuracy=0.1), evaluation(20)]
    run = write(tmp_path / "a", lines)
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
    assert [p.name for p in run.iterdir()] == ["metrics.jsonl"]


def test_the_table_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column for each; a dash where a run has no value."""
    first = write(tmp_path / "one", [train(10), train(20, lr=math.nan), evaluation(20, "x")])
    second = write(tmp_path / "two", [train(30, lr=2e-4)])
    assert table(capsys, first, second, "--metrics", "lr", "accuracy") == [
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
    run, path = write(tmp_path / "a", [train(10)]), tmp_path / "a.png"
    assert table(capsys, run, "--output", path)[-1] == f"written: {path}"
    assert path.is_file()


# The rest ---------------------------------------------------------------------------------------


def test_arguments_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each; a metric that no run has gets a suggestion, the default place the way out."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    line = {"kind": "train", "step": 1, "lm_loss": 1.0, "lr": 1.0}
    write(Path("a"), [line])
    write(Path("b"), [{**line, **{f"m{number}": 1 for number in range(99)}}])
    (tmp_path / "a" / "metrics.png").mkdir()
    place = f"{Path('a/metrics.png')}: cannot be written (it is a folder)"
    for words, expected in [
        (
            "a --metrics lr lm_los",
            "--metrics: no run has 'lm_los'; did you mean 'lm_loss'? (logged",
        ),
        ("b", "101 metrics do not fit a picture; choose some by --metrics"),
        ("a", f"{place}; name another place with --output"),
        ("a --output a.gif", "argument --output: a.gif: its name must end in .png, .pdf or .svg"),
        ("a --output no/a.png", "argument --output: no/a.png: cannot be written (there is no fold"),
    ]:
        assert main(["plot", *words.split()]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(expected) and err.count("\n") == 1


def test_the_log_of_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the trainer writes is what is read here; nothing of it is taken for something else."""
    run = tmp_path / "a"
    Trainer(marks.experiment(run_dir=str(run), train__max_steps=12)).fit()
    (log,) = read_runs([str(run)])
    assert choose_metrics([log])[:4] == list(FIRST) and choose_metrics([log])[-4:] == list(LAST)
    written = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    trained = [(line["step"], line["lm_loss"]) for line in written if line["kind"] == "train"]
    assert points(log, "train", "lm_loss") == trained and [step for step, _ in trained] == [
        4,
        8,
        12,
    ]
    assert set(PER_PUZZLE) <= set(written[0])
    rows = [line.split() for line in table(capsys, run)]
    assert ["train", "step", "12"] in rows and ["eval", "all", "step", "12"] in rows
