"""Commands in odd surroundings: streams that are closed, full disks, Ctrl-C, kill -9."""

import json
import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import ContextManager, Dict

import pytest
from bad_input import snapshot
from child_processes import LIMIT, run, started, wait_until

from mlx_trm import load_checkpoint
from mlx_trm.__main__ import main
from mlx_trm.errors import CheckpointError
from mlx_trm.solve import main as solve

TINY = "--config sudoku_tiny.yaml task.train_puzzles=64 task.test_puzzles=16 train.batch_size=8"
LONG = f"train {TINY} train.epochs=800000"

Environment = Dict[str, str]


@pytest.fixture(name="cache", scope="module")
def make_cache(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The environment of the commands: their cache has the puzzles already."""
    env = {"MLX_TRM_CACHE": str(tmp_path_factory.mktemp("cache"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_TRM_CACHE", env["MLX_TRM_CACHE"])
        assert main(f"data build {TINY} -q".split()) == 0
    return env


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)


# Streams ----------------------------------------------------------------------------------------


def shell(line: str, cache: Environment) -> "CompletedProcess[str]":
    """Run a line of the shell in which ``mlx`` starts the commands."""
    start = f"mlx() {{ '{sys.executable}' -m mlx_trm \"$@\"; }}; "
    return run(["bash", "-c", start + line], cache)


@pytest.mark.parametrize(
    "line, code",
    [
        ("mlx | head -0; exit ${PIPESTATUS[0]}", 141),
        ("mlx data generate --size 4 --count 900 -q | head -1; exit ${PIPESTATUS[0]}", 141),
        ("mlx train --help | head -0; exit ${PIPESTATUS[0]}", 141),
        (f"mlx data show {TINY} >&-", 0),
        ("mlx evaluate nope 2>&-", 2),
        (f"mlx data show {TINY} <&- >&-", 0),
        (f"PYTHONIOENCODING=ascii mlx data show {TINY}", 0),
    ],
)
def test_odd_streams(line: str, code: int, cache: Environment) -> None:
    """A reader that leaves early, closed streams, and a small character set: no noise."""
    done = shell(line, cache)
    assert done.stderr == ""
    assert done.returncode in (code, 0 if code == 141 else code)


@pytest.mark.parametrize(
    "words", [f"data show {TINY}", "--help", "--version", "completion bash", "solve --help"]
)
def test_a_full_disk(words: str, cache: Environment) -> None:
    """Where output cannot be written, one line says so, and how to mend it."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    done = shell(f"mlx {words} > /dev/full", cache)
    assert done.returncode == 2 and done.stderr == (
        "standard output: cannot be written (No space left on device); free space there, or send "
        "it elsewhere\n"
    )


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_device_is_written_to_and_stays(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe here, which anybody may make: never replaced by a file, as a full one is not."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        came = pool.submit(pipe.read_bytes)
        words = ["-q", "sudoku-4x4", "4.21 1... 3.4. ..1.", option, str(pipe)]
        assert solve(words) == 0 and pipe.is_fifo()
        assert came.result(LIMIT)
    capsys.readouterr()
    if os.path.exists("/dev/full"):
        link = tmp_path / "full"
        link.symlink_to("/dev/full")
        words = ["-q", "sudoku-4x4", "4.21 1... 3.4. ..1.", option, str(link)]
        assert solve(words) == 2 and link.is_symlink()
        error = capsys.readouterr().err
        assert error == (
            f"{option} {link}: cannot be written (No space left on device); name another file\n"
        )


RUN = f"mlx train {TINY} train.max_steps=6 train.log_interval=1 run_dir=run"


@pytest.mark.parametrize(
    "line",
    [
        f"{RUN} <&-",
        f"{RUN} <&- >&- 2>&-",
        f"{RUN} | head -1",
        f"{RUN} 2>&1 | head -1",
        f"{RUN} >/dev/full",
        f"{RUN} 2>/dev/full",
        f"{RUN} --log-file /dev/full",
    ],
)
def test_a_run_outlasts_its_streams(line: str, tmp_path: Path, cache: Environment) -> None:
    """Closed, full, or with a reader that has left: trained to the end, saved, code 0."""
    if "/dev/full" in line and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    done = shell(f"{line}; exit ${{PIPESTATUS[0]}}", cache)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert load_checkpoint("run").step == 6
    assert all(json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").open())
    if "/dev/full" in line and "2>" not in line:
        assert "No space left on device" in done.stderr


def test_no_standard_input_is_one_line(tmp_path: Path, cache: Environment) -> None:
    """A puzzle cannot be read from there; everything else works without it."""
    done = shell(
        "mlx solve sudoku-4x4 - <&-; mlx solve sudoku-4x4 '12.. 34.. .143 .321' <&-", cache
    )
    assert done.returncode == 0 and "1234" in done.stdout.replace(" ", "").replace("│", "")
    assert done.stderr.splitlines()[0] == (
        "standard input: cannot be read (it is closed); name a file of puzzles"
    )


@pytest.mark.slow
def test_compilation_without_a_temporary_folder(tmp_path: Path, cache: Environment) -> None:
    """Another folder is taken, and said."""
    line = f"{RUN} train.compile=always train.max_steps=1 -q"
    done = shell(f"TMPDIR={tmp_path}/nowhere {line}", cache)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("TMPDIR: ") and done.stderr.count("\n") == 1


# Interruptions ----------------------------------------------------------------------------------


def command(line: str, cache: Environment) -> "ContextManager[Popen[str]]":
    """Start a command whose output can be read while it works."""
    return started([sys.executable, "-u", "-m", "mlx_trm", *line.split()], cache)


def test_training_stops_cleanly(tmp_path: Path, cache: Environment) -> None:
    """Ctrl-C: the step is finished and saved, the code is 0, the checkpoint loads."""
    log = tmp_path / "stopped" / "metrics.jsonl"
    with command(f"{LONG} run_dir=stopped", cache) as process:
        wait_until(log.exists, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert "Traceback" not in err and "stopping: finishing this step and saving" in err
    assert "\nstopped: " in out
    checkpoint = load_checkpoint("stopped")
    assert checkpoint.step >= 10
    steps = [json.loads(line) for line in log.open()]
    # The last line may have less than an interval to go; its sums are in the checkpoint.
    assert 0 <= checkpoint.step - steps[-1]["step"] < 10


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
def test_a_terminal_that_is_closed_stops_a_run_saved(tmp_path: Path, cache: Environment) -> None:
    """It says so twice, and nothing can be written any more."""
    log = tmp_path / "stopped" / "metrics.jsonl"
    with command(f"{LONG} run_dir=stopped", cache) as process:
        wait_until(log.exists, process)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert load_checkpoint("stopped").step >= 10


def test_an_interrupted_build(tmp_path: Path, cache: Environment) -> None:
    """Ctrl-C: one line, code 130, and nothing half done is left."""
    line = "data build --config sudoku.yaml task.num_aug=20000 --output out/data"
    with command(line, cache) as process:
        wait_until(lambda: list(tmp_path.glob("out/.*/new/train/*inputs.npy")), process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_evaluation(tmp_path: Path, cache: Environment) -> None:
    """Ctrl-C: one line, code 130, and the run is as it was."""
    assert main(f"train {TINY} train.max_steps=1 -q run_dir=run".split()) == 0
    before = snapshot(tmp_path)
    with command("evaluate run --steps 10000000 --log-file log", cache) as process:
        wait_until((tmp_path / "log").exists, process)
        time.sleep(0.3)  # it may be reading or computing by then
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    (tmp_path / "log").unlink()
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_killed_while_saving(tmp_path: Path, cache: Environment) -> None:
    """kill -9 at any moment of many saves: the run loads, or says that it has no checkpoint."""
    draws = random.Random(0)
    loaded = 0
    for number in range(10):
        run_dir = tmp_path / f"k{number}"
        with command(f"{LONG} checkpoint.every=1 run_dir={run_dir}", cache) as process:
            # Every other one has a checkpoint before it is killed.
            awaited = "step_*" if number % 2 else "config.yaml"
            wait_until(lambda: list(run_dir.glob(awaited)), process)
            time.sleep(draws.uniform(0.0, 0.6))
            process.kill()
            process.communicate(timeout=LIMIT)
        try:
            checkpoint = load_checkpoint(run_dir)
        except CheckpointError as error:
            assert "holds no checkpoint" in str(error)
            continue
        steps = [int(path.name[5:]) for path in run_dir.glob("step_*")]
        assert checkpoint.step >= max(steps) - 1
        loaded += 1
    assert loaded >= 5
