"""benchmarks/growth.py: points, slopes, bends, what does not fit, the picture."""

import importlib
import json
import os
import signal
import time
from types import SimpleNamespace

import pytest
from paths import ROOT

FOLDER = ROOT / "benchmarks"
FAST = ["--device", "cpu", "--repeats", "1", "--block-seconds", "0.001", "--eval-steps", "1"]
REPORT = {"versions": {}, "devices": {}, "platform": {"processor": "p", "cores": 1}}
RATES = {"flops": 1e12, "bandwidth": 1e12}


@pytest.fixture(name="suite")
def _suite(monkeypatch):
    """The modules of the suite."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = "growth run curves plot protocol".split()
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def lines_of(folder):
    """Read all lines of a folder of results."""
    files = folder.glob("*.jsonl")
    return [json.loads(text) for file in files for text in file.read_text().splitlines()]


def point(value, milliseconds, gib=None, series="batch", case="train", batch=None):
    """Make a line as growth.py writes it, of what is read from it."""
    return {
        "kind": "growth", "series": series, "size": "tiny", "case": case, "value": value,
        "label": str(value), "batch": batch or value, "seconds": {"median": milliseconds / 1000},
        "peak_memory": gib and int(gib * 2**30), "roofline": {"share": 0.1, "bound": "compute"},
    }  # fmt: skip


@pytest.mark.parametrize("program, work", [("growth", "Growth"), ("run", "Suite")])
def test_sigterm_ends_what_was_started(suite, monkeypatch, program, work):
    """As Ctrl-C does: what holds processes ends them on its way out, and the code is 130."""
    ended = []

    def go(_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            ended.append(True)

    module = getattr(suite, program)
    monkeypatch.setattr(getattr(module, work), "go", go)
    before = signal.getsignal(signal.SIGTERM)
    assert module.main([]) == 130 and ended == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_small_step_is_measured_and_drawn(suite, tmp_path, capsys, monkeypatch):
    """Real points of every series in one process, their lines, tables and picture."""
    monkeypatch.setattr(suite.growth, "ask_machine", lambda *_: (REPORT, RATES))
    words = ["--batches", "2", "1", "--positions", "9", "4", "--tokens", "18", "--cycles", "1x1",
             "1x2", "--rows", "3"]  # fmt: skip
    assert suite.growth.main([*FAST, *words, "--output", str(tmp_path / "results")]) == 0
    lines = lines_of(tmp_path / "results")
    seen = [(line["series"], line["case"], line["value"], line["batch"]) for line in lines]
    assert seen == [
        *(("batch", case, b, b) for case in ("train", "eval") for b in (1, 2)),
        *(("positions", case, t, round(18 / t)) for case in ("train", "eval") for t in (4, 9)),
        *(("cycles", case, updates, 3) for case in ("train", "eval") for updates in (2, 3)),
    ]
    assert {line["H_cycles"] for line in lines[-4:]} == {1}
    assert [line["L_cycles"] for line in lines[-4:]] == [1, 2, 1, 2]
    for line in lines:
        assert line["seconds"]["median"] > 0 and line["peak_memory"] > 0
        assert 0 < line["roofline"]["share"] < 10
        assert {"run", "date", "commit", "machine", "device", "versions"} <= set(line)
    flops = {line["value"]: line["roofline"]["flops"] for line in lines[:2]}
    assert flops[2] == 2 * flops[1]
    said = capsys.readouterr().out
    assert "12 points" in said and "| train, tiny | 1x2 | 3 |" in said
    assert suite.plot.main([str(tmp_path / "results"), "--output", str(tmp_path / "out")]) == 0
    assert "Positions T" in (tmp_path / "out" / "tables.md").read_text()
    assert (tmp_path / "out" / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "growth.pdf").read_bytes().startswith(b"%PDF")


def test_positions_are_those_asked_for(suite):
    """With registers the cells are fewer; a puzzle's vector is left out."""
    words = ["--device", "cpu", "--series", "positions", "--positions", "30", "--tokens", "60"]
    for size, cells in (("tiny", 30), ("sudoku_mlp", 30), ("sudoku_symbols", 23)):
        args = suite.growth.arguments().parse_args([*words, "--sizes", size])
        job = suite.growth.Growth(args).jobs[0]
        assert (job["seq_len"], job["batch"]) == (cells, 2)
        assert suite.growth.roofline.shape_of(job).positions == 30


class Small:
    """A worker whose memory holds three rows."""

    def __init__(self, error):
        self.error, self.closed = error, 0

    def call(self, what, job, **_more):
        if what == "prepare" and job["batch"] > 3:
            raise self.error
        return {"first_seconds": 1.0, "seconds": 0.5, "peak_memory": 8, "resident_memory": 9,
                "facts": {}}  # fmt: skip

    def close(self):
        self.closed += 1


@pytest.mark.parametrize(
    ("words", "again"), [("out of memory: 9 GB", False), ("no such kernel", True)]
)
def test_what_does_not_fit_is_said_and_larger_ones_are_left_out(
    words, again, suite, tmp_path, monkeypatch, capsys
):
    """The smaller ones are kept, and another case and series is tried anew."""
    worker = Small(suite.protocol.WorkerError(f"mlx_trm: {words}"))
    monkeypatch.setattr(suite.growth, "our_worker", lambda _: worker)
    monkeypatch.setattr(suite.growth, "ask_machine", lambda *_: (REPORT, RATES))
    asked = ["--series", "batch", "--batches", "2", "4", "8", "--output", str(tmp_path)]
    assert suite.growth.main([*FAST, *asked]) == 1
    assert [(line["case"], line["value"]) for line in lines_of(tmp_path)] == [
        ("train", 2),
        ("eval", 2),
    ]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"not measured: train tiny, batch 4: mlx_trm: {words}"
    reason = f"mlx_trm: {words}" if again else "batch 4 did not fit the memory"
    assert told[1] == f"not measured: train tiny, batch 8: {reason}"
    assert len(told) == 4 and worker.closed == (4 if again else 2)


def test_no_point_is_begun_after_the_time(suite, tmp_path, monkeypatch, capsys):
    """They are said, and the exit code tells."""
    monkeypatch.setattr(suite.growth, "ask_machine", lambda *_: (REPORT, RATES))
    words = ["--series", "batch", "--cases", "eval", "--batches", "2", "--seconds", "1e-9"]
    assert suite.growth.main([*FAST, *words, "--output", str(tmp_path)]) == 1
    assert "eval tiny, batch 2: --seconds 1e-09 were over" in capsys.readouterr().err


def test_slopes_and_bends_by_hand(suite):
    """Nothing up to 8, then in proportion; memory is in proportion throughout."""
    points = [point(b, max(8, b), b) for b in (1, 8, 64)]
    key = ("batch", "tiny", "train")
    assert suite.curves.slopes(points, "ms") == [None, pytest.approx(0), pytest.approx(1)]
    assert suite.curves.slopes(points, "GiB")[1:] == [pytest.approx(1)] * 2
    (text,) = suite.curves.bends(key, points)
    assert text.startswith("train, tiny, batch: ms bends at 8, slope 0.00 before and 1.00 after")
    assert "10 % of the compute floor, so launches" in text
    assert not suite.curves.bends(key, [point(b, b, b) for b in (1, 8, 64)])
    assert suite.curves.slopes([point(1, 1), point(2, 2)], "GiB") == [None, None]


def test_the_newest_of_a_value_counts(suite):
    """Other rows at the same value are another point."""
    lines = [point(4, 1), point(4, 2), point(1, 5), point(4, 3, batch=8), {"kind": "machine"}]
    (points,) = suite.curves.in_series(lines).values()
    medians = [line["seconds"]["median"] for line in points]
    assert medians == [0.005, 0.002, 0.003]
    assert suite.curves.slopes(points, "ms")[2] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "tinny"], "did you mean 'tiny'"),
        (["--series", "width"], "--series"),
        (["--cycles", "3"], "'3' is no HxL such as 3x6"),
        (["--cycles", "0x2"], "'0x2' is no HxL"),
        (["--batches", "0"], "'0' is not a whole number from 1"),
        (["--seconds", "inf"], "is not a number above 0"),
    ],
)
def test_bad_arguments_are_one_line(words, said, suite, capsys, tmp_path):
    """One line on standard error, exit code 2, nothing written."""
    try:
        code = suite.growth.main(["--output", str(tmp_path / "out"), "--device", "cpu", *words])
    except SystemExit as stop:
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2 and said in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_several_processes_are_a_series(suite, tmp_path):
    """Two of them train over the ring, and take as many rows each."""
    words = ["--series", "gpus", "--gpus", "1", "2", "--rows", "2", "--output", str(tmp_path)]
    assert suite.growth.main([*FAST, *words, "--steps", "6"]) == 0
    lines = lines_of(tmp_path)
    assert [(line["value"], line["batch"]) for line in lines] == [(1, 2), (2, 4)]
    assert [line["seconds"]["blocks"] for line in lines] == [3, 3]


def test_processes_with_other_rows_each_are_another_line(suite):
    """Their work differs: two processes of 192 rows lie on no line with one of 384."""
    points = [
        point(1, 30.0, series="gpus", batch=192),
        point(1, 60.0, series="gpus", batch=384),
        point(2, 40.0, series="gpus", batch=384),
    ]
    found = {
        size: [line["value"] for line in of_size]
        for (_, size, _), of_size in suite.curves.in_series(points).items()
    }
    assert found == {"tiny, 192 rows each": [1, 2], "tiny, 384 rows each": [1]}
