"""What runs have logged: read, smoothed and thinned."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from logged import MEANS, evaluation, points, read, train, write

from mlx_trm.__main__ import main
from mlx_trm.drawing.run_logs import Series, find_log, read_runs, smooth, thin
from mlx_trm.errors import DataError


def test_reading(tmp_path: Path) -> None:
    """Training and each set apart; what is not measured is not a metric."""
    lines = [train(10), train(20, lm_loss=0.5), evaluation(20), evaluation(20, "other", a=0.5)]
    log = read(tmp_path / "a", lines + [{"kind": "note", "text": "x"}])
    assert points(log, "train", "lm_loss") == [(10, 0.2), (20, 0.5)]
    assert list(log.parts) == ["train", "eval all", "eval other"]
    assert points(log, "eval other", "a") == [(20, 0.5)]
    assert not {"kind", "step", "set", "total"} & set(log.metrics())
    assert log.metrics()[:2] == ["count", "accuracy"] and log.metrics()[-1] == "a"
    assert not log.cut


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    """NaN, text, null and bool leave gaps; a metric that has nothing else is none."""
    bad = {"lr": math.inf, "big": 10**400, "far": 1e200}
    lines = [train(10, lr="x"), train(20, lr=math.nan, new=1), train(30, lr=True), train(40)]
    log = read(tmp_path / "a", [*lines, train(50, lr=None), train(60, **bad)])
    assert points(log, "train", "lr") == [(40, 1e-4)]
    assert points(log, "train", "new") == [(20, 1)]
    assert not {"big", "far"} & set(log.metrics())


def test_a_line_in_which_no_puzzle_halted(tmp_path: Path) -> None:
    """Its means are no means; its losses are."""
    nobody = {"count": 0.0, **dict.fromkeys(MEANS, 0.0)}
    log = read(tmp_path / "a", [train(10, **nobody), train(20)])
    for name, mean in MEANS.items():
        assert points(log, "train", name) == [(20, mean)]
    assert points(log, "train", "lm_loss") == [(10, 0.2), (20, 0.1)]


def test_steps_that_were_done_again(tmp_path: Path) -> None:
    """The later line counts, in training and in evaluations, even where it lacks a metric."""
    lines = [train(step, lr=1.0) for step in (10, 20, 30, 40)] + [evaluation(40, accuracy=0.1)]
    lines += [train(30, lr=math.nan), train(40, lr=2.0), train(50, lr=2.0)]
    log = read(tmp_path / "a", [*lines, evaluation(40, accuracy=0.9)])
    assert points(log, "train", "lr") == [(10, 1), (20, 1), (40, 2), (50, 2)]
    assert points(log, "eval all", "accuracy") == [(40, 0.9)]


@pytest.mark.parametrize("end", ['{"kind": "tra', '{"kind": "train", "lm_loss": 0.0', "\xff{", "5"])
def test_a_last_line_that_was_cut_off(
    end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is left out, with a note that -q hides."""
    run = tmp_path / "a"
    log = read(run, [train(10)], end)
    assert log.cut and points(log, "train", "lr") == [(10, 1e-4)]
    note = f"{run / 'metrics.jsonl'}: its last line was cut off and is left out\n"
    for quiet, expected in (([], note), (["-q"], "")):
        assert main(["plot", str(run), "--table", *quiet]) == 0
        assert capsys.readouterr().err == expected


def test_a_last_line_without_an_end(tmp_path: Path) -> None:
    """It counts where it is whole; blank lines do not matter."""
    log = read(tmp_path / "a", [train(10)], "\n  \n" + json.dumps(train(20)))
    assert len(points(log, "train", "lr")) == 2 and not log.cut


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
    with pytest.raises(DataError) as caught:
        read(tmp_path, [train(10)], f"{line}\n{json.dumps(train(10))}\n")
    path = tmp_path / "metrics.jsonl"
    assert str(caught.value) == f"{path}:2: {problem}; mend the line, or take it out"


@pytest.mark.parametrize("text", ["", "\n", '{"kind": "note"}\n', '{"kind": "train", "step": 1}\n'])
def test_a_log_without_metrics(text: str, tmp_path: Path) -> None:
    """One line."""
    with pytest.raises(DataError, match="metrics.jsonl: holds no metrics; a run writes them every"):
        read(tmp_path, [], text)


def test_finding_a_log(tmp_path: Path) -> None:
    """A run folder or the file; a checkpoint's folder gets a hint."""
    run = write(tmp_path / "a", [train(10)])
    (run / "step_10").mkdir()
    assert find_log(str(run)) == find_log(str(run / "metrics.jsonl")) == run / "metrics.jsonl"
    for word, problem in [
        (str(run / "step_10"), f"step_10: holds no metrics.jsonl; did you mean {run}?"),
        (str(tmp_path), "holds no metrics.jsonl; name the folder of a run"),
        ("nope", "nope: no such run; name a run folder, or a metrics.jsonl"),
        ("n" * 300, "cannot be read"),
    ]:
        with pytest.raises(DataError) as caught:
            find_log(word)
        assert problem in str(caught.value)


def test_names_tell_runs_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder, with what is above it where two are called alike; the same run once."""
    monkeypatch.chdir(tmp_path)
    for name in ("x/one", "y/one", "two\n"):
        write(Path(name), [train(10)])
    Path("link").symlink_to("two\n")
    Path("two\n/old.jsonl").write_text(json.dumps(train(5)), encoding="utf-8")
    for words, names in [
        (["x/one", "two\n", "./x/one", "link"], ["one", "two?"]),
        (["x/one", "y/one"], ["x/one", "y/one"]),
        (["two\n", "two\n/old.jsonl"], ["metrics.jsonl", "old.jsonl"]),
    ]:
        assert [log.name for log in read_runs(words)] == names


# Fewer points -----------------------------------------------------------------------------------


def test_smoothing(tmp_path: Path) -> None:
    """A mean over so many lines, fewer at the beginning; evaluations stand for themselves."""
    losses = [1.0, 3.0, 5.0, 9.0]
    lines = [line for n, x in enumerate(losses) for line in (train(n, a=x), evaluation(n, a=x))]
    log = read(tmp_path / "a", lines)
    for count, expected in [(1, losses), (3, [1, 2, 3, 17 / 3]), (99, [1, 2, 3, 4.5])]:
        held = smooth(log, count)
        np.testing.assert_allclose(held.parts["train"]["a"].values, expected)
        assert points(held, "eval all", "a") == list(enumerate(losses))
    only = read(tmp_path / "b", [evaluation(1)])
    assert smooth(only, 3) is only


@given(st.integers(1, 300), st.integers(1, 50))
def test_thinning_keeps_the_mean(count: int, most: int) -> None:
    """Whatever the numbers: few points, in order, and the sum over all of them stays."""
    series = Series(np.arange(float(count)), np.random.default_rng(count).normal(size=count))
    thinned = thin(series, most)
    assert 1 <= len(thinned.values) <= most and np.all(np.diff(thinned.steps) > 0)
    size = math.ceil(count / most)
    weights = np.full(len(thinned.values), size)
    weights[-1] = count - size * (len(weights) - 1)
    for before, after in zip(series, thinned):
        assert np.sum(after * weights) == pytest.approx(np.sum(before))
