"""benchmarks/time_to_accuracy.py: when a run had which accuracy, and what that took."""

import ctypes
import importlib
import itertools
import json
import os
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from paths import ROOT

import mlx_trm as trm
from mlx_trm import data

FOLDER = ROOT / "benchmarks"
REPORT = {"versions": {"mlx": "0"}, "devices": {}, "platform": {"processor": "p", "cores": 1}}
# 12 steps between evaluations; the accuracy is that of cells, of which some are always right.
TINY = ["--config", "sudoku_tiny.yaml", "--device", "cpu", "task.train_puzzles=400",
        "task.test_puzzles=32", "task.min_givens=8", "eval.interval=2",
        "eval.best_metric=accuracy"]  # fmt: skip

# Trains as benchmarks/upstream_train.py does, without PyTorch, and notes how it was started.
FAKE = """#!{python}
import json, os, sys, time
job = json.load(open(sys.argv[3]))
rank = int(os.environ["RANK"])
seen = {{name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}}
json.dump({{**seen, "words": sys.argv[1:]}}, open(job["metrics"] + str(rank), "w"))
while not os.path.exists(job["metrics"] + str(int(seen["WORLD_SIZE"]) - 1)):
    time.sleep(0.01)
def write(**line):
    if rank == 0:
        with open(job["metrics"], "a") as file:
            file.write(json.dumps(line) + "\\n")
write(kind="about", versions={{"torch": "0"}}, facts={{"substituted": []}})
for number in range(1, 4):
    write(kind="train", step=10 * number, steps_per_second=10.0, peak_memory=5)
    if {evaluates}:
        write(kind="eval", step=10 * number, set="all", exact_accuracy=0.2 * number)
if {fails}:
    sys.exit("no such GPU")
time.sleep(60)
"""


@pytest.fixture(name="suite")
def _suite(monkeypatch):
    """The modules of the suite; the machine is not measured."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = "time_to_accuracy watched curves energy launching upstream_train".split()
    found = SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    monkeypatch.setattr(found.time_to_accuracy, "ask_machine", lambda _: (REPORT, {}))
    return found


def only_line(folder):
    """Read the one line of a folder of results."""
    (file,) = folder.glob("*.jsonl")
    (text,) = file.read_text().splitlines()
    return json.loads(text)


def original(folder, fails=False, evaluates=True):
    """Make a stand-in for a checkout of the original and its interpreter; gives the options."""
    checkout = folder / "checkout" / "models" / "recursive_reasoning"
    checkout.mkdir(parents=True)
    (checkout / "trm.py").write_text("")
    fake = folder / "python"
    fake.write_text(FAKE.format(python=sys.executable, fails=fails, evaluates=evaluates))
    fake.chmod(0o755)
    recipe = ["--recipe", "sudoku_tiny.yaml", "--recipe-set", "task.num_aug=2"]
    recipe += ["--recipe-set", "model.swiglu_multiple=256"]
    return ["--compare", str(folder / "checkout"), "--upstream-python", str(fake), *recipe,
            "--upstream-commit", "e7b6871"]  # fmt: skip


def test_a_run_is_stopped_where_it_has_reached_everything(suite, tmp_path, capsys):
    """A real run, by the command that users have; it saves before it ends."""
    words = [*TINY, "--to", "9", "10", "--output", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert suite.time_to_accuracy.main(words) == 0
    line = only_line(tmp_path)
    assert (line["implementation"], line["ended"], line["gpus"]) == ("mlx_trm", "reached", 1)
    assert line["metric"] == "accuracy" and line["settings"] == TINY[4:]
    assert line["joules"] is None and line["energy"] == "not measured"
    first = line["evaluations"][0]
    for found, asked in zip(line["reached"], (9, 10)):
        assert (found["accuracy"], found["reached"], found["step"]) == (asked, True, first["step"])
        assert found["found"] == first["accuracy"] >= asked
        assert 0 < found["training_seconds"] < found["seconds"] <= line["seconds"]
    assert first["step"] == 12
    run = tmp_path / "runs" / "mlx_trm_1" / "run"
    assert (run / "latest" / "state.json").exists() and not list(run.glob("**/*.partial"))
    said = capsys.readouterr().out
    assert (
        "% at step 12 after" in said
        and "| mlx_trm | sudoku_tiny.yaml, batch 64 | 1 | 9 % |" in said
    )


def test_a_run_that_ends_first_is_said(suite, tmp_path, capsys):
    """With its best accuracy, and exit code 0: that is a result."""
    words = [*TINY, "train.max_steps=4", "--to", "99.5", "--output", str(tmp_path)]
    assert suite.time_to_accuracy.main(words) == 0
    line = only_line(tmp_path)
    (found,) = line["reached"]
    assert (line["ended"], found["reached"], found["step"]) == ("ended", False, 4)
    assert 0 < found["found"] < 99.5
    assert f"| 99.5 %: not by its end; best {found['found']:.1f} % |" in capsys.readouterr().out


def test_the_original_trains_beside_it(suite, tmp_path):
    """Its processes know each other as torchrun's do, and work on our data."""
    options = original(tmp_path)
    words = [*TINY, *options, "--only-original", "--gpus", "2", "--to", "30", "60"]
    runs = tmp_path / "runs"
    words += ["--output", str(tmp_path), "--runs", str(runs)]
    assert suite.time_to_accuracy.main(words) == 0
    line = only_line(tmp_path)
    assert (line["implementation"], line["ended"], line["gpus"]) == ("original", "reached", 2)
    assert line["metric"] == "exact_accuracy" and line["original"]["commit"] == "e7b6871"
    assert line["versions"] == {"torch": "0"} and line["peak_memory"] == 5
    assert [each["step"] for each in line["reached"]] == [20, 30]
    assert [each["training_seconds"] for each in line["reached"]] == pytest.approx([2, 3])
    seen = [json.loads((runs / "original_2" / f"metrics.jsonl{r}").read_text()) for r in (0, 1)]
    assert [each["RANK"] for each in seen] == ["0", "1"]
    assert {each["WORLD_SIZE"] for each in seen} == {"2"}
    assert len({each["MASTER_PORT"] for each in seen}) == 1
    assert "--gpu" not in seen[0]["words"]
    job = json.loads((runs / "original_2" / "job.json").read_text())
    assert (job["batch"], job["dtype"], job["compiled"]) == (64, "float32", False)
    about = json.loads((runs / "data" / "train" / "dataset.json").read_text())
    assert about["total_groups"] == 400


@pytest.mark.parametrize("how", ["limit", "interrupted", "failed"])
def test_what_was_reached_is_kept(how, suite, tmp_path, capsys, monkeypatch):
    """After the limit, after SIGTERM, and where a process fails: exit codes 0, 130 and 2."""
    words = [*TINY, *original(tmp_path, how == "failed"), "--only-original", "--to", "50", "90"]
    tell = suite.time_to_accuracy.Comparison.tell

    def end(self, found):
        tell(self, found)
        if found.step == 30 and how == "interrupted":
            os.kill(os.getpid(), signal.SIGTERM)
        if found.step == 30 and how == "limit":
            self.args.seconds = 0.0

    monkeypatch.setattr(suite.time_to_accuracy.Comparison, "tell", end)
    words += ["--output", str(tmp_path)]
    assert suite.time_to_accuracy.main(words) == {"limit": 0, "interrupted": 130, "failed": 2}[how]
    line = only_line(tmp_path)
    assert line["ended"] == how and [each["step"] for each in line["evaluations"]] == [10, 20, 30]
    first, second = line["reached"]
    assert (first["reached"], first["step"]) == (True, 30)
    assert (second["reached"], second["found"]) == (False, pytest.approx(60))
    message = capsys.readouterr().err
    assert message.count("\n") == (0 if how == "limit" else 1)
    assert ("no such GPU" in message) == (how == "failed")


def test_a_run_without_an_evaluation_has_its_speed(suite, tmp_path, capsys):
    """It is stopped after the steps asked for, which is all that is asked of some."""
    words = [*TINY, *original(tmp_path, evaluates=False), "--only-original", "--steps", "30"]
    assert suite.time_to_accuracy.main([*words, "--output", str(tmp_path)]) == 0
    line = only_line(tmp_path)
    assert (line["ended"], line["evaluations"]) == ("steps", [])
    assert line["steps_per_second"] == pytest.approx(10) and line["reached"][0]["found"] is None
    said = capsys.readouterr().out
    assert "    10 steps a second, later half of its log" in said
    assert "| 50 %: not in the steps asked for; no evaluation | - |" in said


def test_a_speed_does_not_replace_an_accuracy_in_the_table(suite):
    """Of the same recipe: the newest run that shows accuracies, and the newest for its speed."""
    about = {"kind": "accuracy", "machine": "m", "device": "cpu", "implementation": "the original",
             "config": "c.yaml", "gpus": 1, "batch": 8, "settings": [], "limit": 60.0}  # fmt: skip

    def line(ended, step, rate):
        evaluations = [suite.watched.Evaluation(step, 60.0, 9.0, 8.0, 7.0, None)] if step else []
        found = [suite.watched.reached(evaluations, 50.0)]
        more = {"ended": ended, "evaluations": evaluations, "steps_per_second": rate}
        return {**about, **more, "reached": found}

    lines = [line("reached", 100, 1.0), line("reached", 200, 2.0), line("steps", None, 3.0)]
    lines += [line("limit", None, 4.0), line("steps", 300, 5.0)]
    rows = suite.curves.accuracy_table(lines).splitlines()[2:]
    assert [row.split(" | ")[7::2] for row in rows] == [["200", "2 |"], ["300", "5 |"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "0"], "'0' is not a number above 0 and up to 100"),
        (["--gpus", "5"], "--gpus 5: does not divide train.batch_size 64"),
        (["run_dir=here"], "run_dir: is chosen here"),
        (["--only-original"], "needs --compare"),
        (["eval.best_metric=lm_loss"], "eval.best_metric: is a loss"),
        (["--runs", str(FOLDER)], "is not empty; name a new folder"),
        (["--compare", "."], "no checkout of TinyRecursiveModels"),
        (["--configg", "x"], "--configg"),
        (["train.batchsize=3"], "did you mean"),
        (["task.train_file=nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_arguments_are_one_line(words, said, suite, capsys, tmp_path):
    """One line on standard error, exit code 2, no result."""
    try:
        code = suite.time_to_accuracy.main([*TINY, "--output", str(tmp_path), *words])
    except SystemExit as stop:
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2 and said in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_the_original_does_not_know_is_one_line(suite, tmp_path, capsys):
    """All of its settings are named, and nothing is begun."""
    words = [*TINY, *original(tmp_path), "--recipe-set", "train.optimizer=muon", "--recipe-set"]
    words += ["model.noise=0.1", "--output", str(tmp_path / "out")]
    assert suite.time_to_accuracy.main(words) == 2
    assert capsys.readouterr().err == (
        "--recipe sudoku_tiny.yaml: the original knows no model.noise=0.1, "
        "train.optimizer=muon\n"
    )
    assert not (tmp_path / "out").exists()


def test_results_do_not_say_where_files_are(suite):
    """Of files their names."""
    words = ["task.train_file=/home/me/train.csv", "train.lr=1e-3", "task.size=9"]
    assert suite.time_to_accuracy.without_folders(words) == [
        "task.train_file=train.csv",
        *words[1:],
    ]


# The log, and energy -----------------------------------------------------------------------------


def test_seconds_of_training_leave_compiling_out(suite):
    """An interval that is half as slow again as those around it counts as these."""
    intervals = [
        (10, 3.0),
        (10, 0.1),
        (10, 0.1),
        (5, 0.2),
        (5, 0.2),
        (5, 0.2),
        (10, 0.9),
        (10, 0.2),
    ]
    assert suite.watched.steady_seconds(intervals) == pytest.approx(1 + 1 + 1 + 3 + 2 + 2)
    assert suite.watched.steady_seconds(intervals[:1]) == pytest.approx(30)


def test_the_rate_is_that_of_the_later_half(suite, tmp_path):
    """Where nothing is compiled any more; None before the first line."""
    path, log = tmp_path / "metrics.jsonl", suite.watched.Log("accuracy")
    assert log.steps_per_second() is None
    lines = [
        {"kind": "train", "step": 5 * number, "steps_per_second": rate}
        for number, rate in enumerate((0.1, 1, 50, 20, 25, 10), start=1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log.read(path, 1.0, None)
    assert log.steps_per_second() == pytest.approx(20)


def test_a_line_that_is_half_there_is_read_later(suite, tmp_path):
    """Of an evaluation of several sets the first counts."""
    path, log = tmp_path / "metrics.jsonl", suite.watched.Log("exact_accuracy")
    assert log.read(path, 1.0, None) == []
    first = '{"kind": "eval", "step": 5, "set": "all", "exact_accuracy": 0.25}\n'
    second = first.replace("all", "all/raw").replace("0.25", "0.75")
    path.write_text('{"kind": "train", "step": 5, "steps_per_second": 2}\n' + first[:20])
    assert log.read(path, 2.0, None) == []
    path.write_text(path.read_text()[:-20] + first + second)
    (found,) = log.read(path, 3.0, 70.0)
    assert found == (5, 25.0, 3.0, 2.5, 2.5, 70.0)
    assert suite.watched.reached([], 50)["found"] is None


def test_power_is_added_up(suite, tmp_path, monkeypatch):
    """Of the GPUs in use, as nvidia-smi prints it."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        f"#!{sys.executable}\nimport sys, time\nwhile True:\n"
        "    print('0, 100.0\\n1, 300.0\\n2, [N/A]', flush=True)\n"
        "    if '-lms' not in sys.argv: break\n    time.sleep(0.01)\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(suite.energy, "LIBRARY", "no_such_library.so")
    monkeypatch.setenv("PATH", str(tmp_path))
    # A clock that goes on by a second for each sample: each GPU is read every other second.
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(suite.energy, "time", clock)
    with suite.energy.Meter(["0", "1"]) as meter:
        assert meter.source == suite.energy.SAMPLES
        while (meter.joules() or 0) < 4000:
            time.sleep(0.01)
        assert meter.joules() % 800 in (0, 200)
    monkeypatch.setenv("PATH", "")
    for gpus in (["0"], [], ["GPU-8932f937-d72c"]):
        with suite.energy.Meter(gpus) as meter:
            assert meter.source is None and meter.joules() is None


def test_a_counter_of_energy_is_read(suite, monkeypatch):
    """In millijoules, of each GPU in use, from where it stood."""

    class Library:
        counts = {3: 5_000_000, 4: 7_000_000}

        def nvmlInit_v2(self):
            return 0

        def nvmlDeviceGetHandleByIndex_v2(self, number, handle):
            handle._obj.value = number
            return 0

        def nvmlDeviceGetTotalEnergyConsumption(self, handle, found):
            found._obj.value = self.counts[handle.value]
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    with suite.energy.Meter(["3", "4"]) as meter:
        assert (meter.source, meter.joules()) == (suite.energy.COUNTER, 0.0)
        Library.counts = {3: 5_500_000, 4: 7_250_000}
        assert meter.joules() == 750.0


# Processes, and the original's data --------------------------------------------------------------


def test_processes_find_each_other_as_the_documents_say(suite, tmp_path, monkeypatch):
    """A GPU each of those that this program may use, over NCCL; over the ring on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert suite.launching.together(1, True, tmp_path) == [{"CUDA_VISIBLE_DEVICES": "2"}]
    found = suite.launching.together(2, True, tmp_path)
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    assert all(f"{name}=" in page for name in found[0])
    assert [(each["MLX_RANK"], each["CUDA_VISIBLE_DEVICES"]) for each in found] == [
        ("0", "2"),
        ("1", "5"),
    ]
    assert suite.launching.together(1, False, tmp_path) == [{}]
    ring = suite.launching.together(2, False, tmp_path)
    assert len(json.loads(open(ring[1]["MLX_HOSTFILE"]).read())) == 2


@pytest.fixture(name="built")
def _built(tmp_path):
    """A built data set of 12 puzzles with 3 copies each, and 10 for the test."""
    words = [
        "build",
        "--config",
        "sudoku_tiny.yaml",
        "task.train_puzzles=12",
        "task.num_aug=3",
        "task.test_puzzles=10",
        "task.augment=none",
        "--output",
        str(tmp_path / "data"),
        "-q",
    ]
    assert data.main(words) == 0
    return tmp_path / "data"


def test_the_original_s_batches(suite, built):
    """Each puzzle once an epoch, one of its copies; the test set once, filled up with nothing."""
    puzzles = suite.upstream_train.Puzzles(built / "train")
    halves = [puzzles.training(6, 5, slice(first, first + 3)) for first in (0, 3)]
    drawn = [np.concatenate([next(half)["inputs"] for half in halves]) for _ in range(2)]
    inputs, groups = puzzles.arrays["inputs"], puzzles.arrays["group_indices"]
    rows = [int((inputs == row).all(axis=1).nonzero()[0][0]) for row in np.concatenate(drawn)]
    assert sorted(np.searchsorted(groups, rows, side="right") - 1) == list(range(12))
    test = suite.upstream_train.Puzzles(built / "test")
    parts = [list(test.testing(4, slice(first, first + 2))) for first in (0, 2)]
    found = np.concatenate([batch["inputs"] for pair in zip(*parts) for batch in pair])
    assert found.shape == (12, 16) and (found[:10] == test.arrays["inputs"]).all()
    last = parts[1][-1]["labels"]
    assert last.dtype == np.int32 and (last == suite.upstream_train.IGNORED).all()
    split = trm.build_task(trm.load_config("sudoku_tiny.yaml").task, 0).spec
    assert (split.vocab_size, split.seq_len) == (5 + 1, 16)


def test_the_original_s_learning_rates(suite):
    """A warm-up from 0, then constant, or half a cosine to the least."""
    recipe = {"lr_warmup_steps": 10, "lr_min_ratio": 1.0}
    factors = [suite.upstream_train.learning_factor(step, 110, recipe) for step in (1, 5, 10, 99)]
    assert factors == [0.1, 0.5, 1.0, 1.0]
    recipe["lr_min_ratio"] = 0.2
    factors = [suite.upstream_train.learning_factor(step, 110, recipe) for step in (10, 60, 110)]
    assert factors == pytest.approx([1.0, 0.6, 0.2])
