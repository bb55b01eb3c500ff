"""Going on after a stop: to the bit, from whole files only, one process at a time."""

import errno
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import mlx.core as mx
import numpy as np
import pytest
from bad_input import snapshot
from child_processes import LIMIT, run_python, started, wait_until
from marks import experiment
from paths import HELPERS
from run_files import arrays_of, log_of

from mlx_trm.errors import CheckpointError, ConfigError, NonFiniteError, UnreadableError
from mlx_trm.runs.checkpoint import load_checkpoint, newest_whole
from mlx_trm.runs.folder import RunLock
from mlx_trm.runs.layout import list_checkpoints
from mlx_trm.runs.state import write_state
from mlx_trm.system.files import hash_file
from mlx_trm.train import main as train
from mlx_trm.training import loop
from mlx_trm.training.step import TrainStep
from mlx_trm.training.trainer import Trainer


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def assert_same_run(one: Path, other: Path) -> None:
    """The same log and the same newest checkpoint, to the bit."""
    assert log_of(one) == log_of(other)
    want, have = (arrays_of(run / "latest") for run in (one, other))
    assert set(want) == set(have) and len(want) > 20
    for name, array in want.items():
        assert (array == have[name]).all(), name
    progress = [
        json.loads((r / "latest" / "state.json").read_text())["progress"] for r in (one, other)
    ]
    for state in progress:
        state["log"].pop("seconds")
        assert state.pop("seconds") > 0
    assert progress[0] == progress[1]


# All that a recipe can have besides the paper's.
RECIPE = {
    "train__optimizer": "muon",
    "train__loss": "softmax",
    "train__label_smoothing": 0.1,
    "train__halt_loss_weight": 0.05,
    "train__grad_clip": 0.5,
    "train__lr_schedule": "run",
    "train__lr_min_ratio": 0.0,
    "train__lr_scale": ["lm_head.*=0.5"],
    "train__ema_start": 0.4,
    "train__curriculum": ["0:1x1", "0.2:1x2", "0.6:2x1"],
    "model__start": "random",
    "model__noise": 0.01,
}


def short(run: str, **changes: Any) -> Any:
    """Three iterations of 20 steps."""
    return experiment(**{"run_dir": run, "train__epochs": 15, "eval__interval": 5, **changes})


def stop_at(trainer: Trainer, step: int) -> Callable[[int], None]:
    """Ask the trainer to stop once it has taken that step."""
    return lambda number: trainer.stop() if number == step else None


@pytest.fixture(name="shared", scope="module")
def make_shared(tmp_path_factory: Any) -> Path:
    """A folder with ``whole``, a run of all its steps, and ``parts``, stopped at step 50."""
    folder: Path = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_TRM_CACHE", str(folder / "cache"))
        Trainer(short(str(folder / "whole"))).fit()
        trainer = Trainer(short(str(folder / "parts"), checkpoint__keep=9))
        trainer.fit(on_tick=stop_at(trainer, 50))
    return folder


@pytest.fixture(name="whole")
def fixture_whole(shared: Path) -> Path:
    """An uninterrupted run, to be read only."""
    return shared / "whole"


@pytest.fixture(name="parts")
def fixture_parts(shared: Path, tmp_path: Path) -> Path:
    """The test's own copy of a run that was stopped at step 50, with all its checkpoints."""
    shutil.copytree(shared / "parts", tmp_path / "parts", symlinks=True)
    return Path("parts")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__log_interval": 7, "eval__raw": True},  # divides no iteration
        {"train__micro_batch_size": 4},
        {"train__ema": False},
        RECIPE,
        {**RECIPE, "train__micro_batch_size": 4, "train__compile": "always", "train__chains": 2},
    ],
)
def test_any_number_of_stops(changes: Dict[str, Any]) -> None:
    """In the middle of an iteration and of a line of the log, at an iteration's end, in a row."""
    changes = {**changes, "train__epochs": 6, "eval__interval": 2}  # three iterations of 8 steps
    Trainer(short("whole", **changes)).fit()
    trainer = Trainer(short("parts", **changes))
    for step in (1, 7, 8, 9, 23):
        report = trainer.fit(on_tick=stop_at(trainer, step))
        assert (report.steps, report.interrupted, report.reason) == (step, True, "stopped")
        trainer = Trainer.resume("parts")
        assert trainer.step == step and not trainer.finished()
    report = trainer.fit()
    assert report.steps == 24 and report.taken == 1 and not report.interrupted
    assert_same_run(Path("whole"), Path("parts"))
    assert Trainer.resume("parts").finished()


def test_a_checkpoint_from_before_there_were_recipes_goes_on() -> None:
    """Its configuration has none of their settings, its progress no seconds; to the bit."""
    Trainer(short("whole", train__max_steps=12)).fit()
    trainer = Trainer(short("parts", train__max_steps=12))
    trainer.fit(on_tick=stop_at(trainer, 5))
    folder = Path("parts/step_5")
    config = (folder / "config.yaml").read_text()
    later = set(RECIPE) - {"train__loss", "train__lr_min_ratio"}
    words = ("muon_", "lr_scale", "chains", "noise", "damping")
    names = (*words, *(name.partition("__")[2] for name in later))
    kept = [line for line in config.splitlines() if not line.strip().startswith(names)]
    assert len(kept) < len(config.splitlines()) - 10
    (folder / "config.yaml").write_text("\n".join(kept) + "\n")
    state = json.loads((folder / "state.json").read_text())
    del state["progress"]["seconds"], state["progress"]["skipped_in_row"], state["own_sha256"]
    state["sha256"]["config.yaml"] = hash_file(folder / "config.yaml")
    (folder / "state.json").write_text(json.dumps(state))
    Trainer.resume("parts").fit()
    assert_same_run(Path("whole"), Path("parts"))


def test_a_time_limit_is_a_stop(monkeypatch: Any) -> None:
    """``train.max_hours`` finishes the step and saves."""
    trainer = Trainer(short("run", train__max_hours=0.5))
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def tick(step: int) -> None:
        now[0] = 1799.0 if step < 5 else 1800.0

    report = trainer.fit(on_tick=tick)
    assert report.steps == 5 and report.reason == "train.max_hours=0.5 reached"
    assert Trainer.resume("run").step == 5


def test_a_checkpoint_holds_everything() -> None:
    """Weights, average, moments, carry, names of rows, and where the data and the log are."""
    trainer = Trainer(short("run"))
    trainer.fit(on_tick=stop_at(trainer, 26))
    folder = Path("run/step_26")
    names = set(arrays_of(folder))
    assert {"carry.latents.0", "carry.latents.1", "carry.steps", "carry.halted", "carry.inputs",
            "optimizer.step", "optimizer.lm_head.weight.m", "ema.lm_head.weight",
            "model.puzzle_emb.weights", "model.H_init"} <= names  # fmt: skip
    state = json.loads((folder / "state.json").read_text())
    assert state["progress"]["iteration"] == 2 and state["progress"]["batches"] == 6
    assert state["progress"]["log"]["steps"] == 2 and state["progress"]["evaluated"] == 20
    arrays = {f"{name}.safetensors" for name in ("model", "ema", "optimizer", "carry")}
    assert set(state["sha256"]) == arrays | {"config.yaml", "identifiers.json.gz"}


def test_more_steps_can_be_asked_for() -> None:
    """A run that ``train.max_steps`` ended goes on; other settings have to stay."""
    Trainer(short("run", train__max_steps=10)).fit()
    trainer = Trainer.resume("run", ["train.max_steps=20", "checkpoint.keep=9"])
    assert trainer.run.plan.planned_steps == 20
    trainer.fit()
    assert [path.name for path in list_checkpoints("run")] == ["step_10", "step_20"]
    wrong = "train.lr: the run has 0.003, not 1.0; a resumed run .*--init-from"
    with pytest.raises(ConfigError, match=wrong):
        Trainer.resume("run", ["train.lr=1.0"])
    with pytest.raises(ConfigError, match="run has 2 problems") as caught:
        Trainer.resume("run", ["train.lr=1.0", "seed=4"])
    assert "seed: the run has 0, not 4" in str(caught.value)


def test_an_older_checkpoint_can_be_taken() -> None:
    """Newer ones are set aside, and the log goes back to it."""
    config = short("run", checkpoint__keep=9, checkpoint__every=25)
    Trainer(config).fit()
    shutil.copytree("run", "whole", symlinks=True)
    Trainer.resume("run/step_25").fit()
    assert_same_run(Path("whole"), Path("run"))
    assert sorted(path.name for path in Path("run").glob("aside_*")) == [
        "aside_step_40", "aside_step_50", "aside_step_60"]  # fmt: skip


def test_the_last_step_may_be_the_one_that_stops() -> None:
    """Its line of the log and its evaluation come, once, when the run is resumed."""
    Trainer(short("whole", train__log_interval=7)).fit()
    trainer = Trainer(short("parts", train__log_interval=7))
    trainer.fit(on_tick=stop_at(trainer, 60))
    trainer = Trainer.resume("parts")
    assert not trainer.finished()
    trainer.fit()
    assert_same_run(Path("whole"), Path("parts"))
    assert Trainer.resume("parts").finished()


def test_max_steps_may_be_where_the_run_stands() -> None:
    """One more evaluation, saved; then it is finished."""
    trainer = Trainer(short("run"))
    trainer.fit(on_tick=stop_at(trainer, 33))
    trainer = Trainer.resume("run", ["train.max_steps=33"])
    trainer.fit()
    again = Trainer.resume("run", ["train.max_steps=33"])
    assert again.finished() and [line["step"] for line in log_of(Path("run"))][-1] == 33
    assert min(line["step"] for line in log_of(Path("run"))) > 0


def test_killed_between_an_evaluation_and_its_checkpoint(whole: Path, monkeypatch: Any) -> None:
    """The evaluation is logged once."""
    trainer = Trainer(short("parts"))
    trainer.fit(on_tick=stop_at(trainer, 20))
    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_save", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Trainer.resume("parts").fit()
    Trainer.resume("parts").fit()
    assert_same_run(whole, Path("parts"))


@pytest.mark.parametrize("name", ["latest", "best", "step_40", "."])
def test_every_way_to_name_a_checkpoint(name: str, parts: Path, monkeypatch: Any) -> None:
    """Links, folders, and the working folder."""
    target = parts / ("step_40" if name == "." else name)
    step = int(target.resolve().name[5:])
    if name == ".":
        monkeypatch.chdir(target)
    trainer = Trainer.resume(Path(".") if name == "." else target)
    assert trainer.step == step and trainer.resumed_from.name == f"step_{step}"
    trainer.fit()
    run = Path("..") if name == "." else parts
    assert (run / "best").exists() and (run / "latest").resolve().name == "step_60"
    assert not list(run.glob("step_*/.lock"))


def test_a_checkpoint_under_another_name() -> None:
    """Cannot be resumed; said in one line."""
    Trainer(short("run", train__max_steps=5)).fit()
    shutil.copytree("run/step_5", "elsewhere/my_copy")
    with pytest.raises(CheckpointError, match="is the checkpoint of step 5 under another name"):
        Trainer.resume("elsewhere/my_copy")


@pytest.mark.parametrize("junk", [b"0\n", b"[]\n", b'{"step": null}\n', bytes(range(256)), b'"a'])
def test_a_log_with_junk_behind_it(junk: bytes, whole: Path, parts: Path) -> None:
    """What was written after the checkpoint goes, whatever it is."""
    with open(parts / "metrics.jsonl", "ab") as file:
        file.write(junk)
    Trainer.resume(parts).fit()
    assert_same_run(whole, parts)


@pytest.mark.parametrize(
    "values",
    [{"iteration": "x"}, {"batches": -3}, {"log": {"a": 1}}, {"best": "x"}, {"more": 1}],
)
def test_damaged_progress(values: Dict[str, Any], parts: Path) -> None:
    """One line, before anything is changed."""
    path = parts / "step_40" / "state.json"
    state = json.loads(path.read_text())
    state["progress"].update(values)
    write_state(path.parent, state)
    with pytest.raises(CheckpointError, match="step_40: cannot be resumed: progress is damaged"):
        Trainer.resume(path.parent)
    assert Trainer.resume(parts).step == 50


def test_other_data_and_another_folder_are_refused() -> None:
    """The data may lie elsewhere, but have to be the same."""
    trainer = Trainer(short("run"))
    trainer.fit(on_tick=stop_at(trainer, 5))
    trainer.run.task.build("same")
    assert Trainer.resume("run", ["task.data_dir=same"]).step == 5
    type(trainer.run.task)(trainer.run.task.config, seed=9).build("other")
    with pytest.raises(ConfigError, match="the data are not those that the run was trained with"):
        Trainer.resume("run", ["task.data_dir=other"])
    with pytest.raises(ConfigError, match="run_dir: a run goes on in its own folder .*run, not x"):
        Trainer.resume("run", ["run_dir=x"])
    os.rename("run", "moved")
    assert Trainer.resume("moved").step == 5


def test_another_process_may_have_gone_on_meanwhile() -> None:
    """What was read before the lock was taken is not trusted."""
    trainer = Trainer(short("run"))
    trainer.fit(on_tick=stop_at(trainer, 5))
    first, second = Trainer.resume("run"), Trainer.resume("run")
    first.fit(on_tick=stop_at(first, 9))
    with pytest.raises(ConfigError, match="another process has gone on with it; resume it again"):
        second.fit()
    assert Trainer.resume("run").step == 9


# Damage ----------------------------------------------------------------------------------------


@pytest.fixture(name="run", scope="module")
def make_run(tmp_path_factory: Any) -> Path:
    """A run with the checkpoints step_18 and step_20."""
    folder: Path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_TRM_CACHE", str(folder / "cache"))
        config = short(str(folder / "run"), train__max_steps=20, checkpoint__every=18)
        Trainer(config).fit()
    return folder / "run"


FILES = ["model", "ema", "optimizer", "carry"]


def damage(path: Path, how: str, where: float) -> None:
    """Cut a file, flip a bit of it, empty it or remove it."""
    content = bytearray(path.read_bytes())
    at = int(where * (len(content) - 1))
    if how == "flipped":
        content[at] ^= 4
    path.write_bytes(bytes(content[: at if how == "cut" else len(content)]))
    if how == "missing":
        path.unlink()


@pytest.mark.parametrize(
    "how, where",
    [*((how, where) for how in ("cut", "flipped") for where in (0.0, 0.3, 0.999)), ("missing", 0)],
)
@pytest.mark.parametrize("name", [*FILES, "config", "state"])
def test_damaged_files(run: Path, tmp_path: Path, name: str, how: str, where: float) -> None:
    """Named, with the newest whole checkpoint; ``auto`` takes that one and nothing is lost."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    suffix = {"config": ".yaml", "state": ".json"}.get(name, ".safetensors")
    path = tmp_path / "run" / "step_20" / f"{name}{suffix}"
    damage(path, how, where)
    if name == "state" and how == "flipped":
        path.write_bytes(path.read_bytes()[:-2] + b"]")  # a flipped bit may still say the same
    if name == "state" and how == "missing":
        # Such a folder is no checkpoint at all; the newest one is simply the other.
        assert Trainer.resume("run").step == 18
        return
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError) as caught:
        Trainer.resume("run")
    message = str(caught.value)
    assert path.name in message and message.endswith("the newest whole one is run/step_18")
    assert "\n" not in message
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    trainer = Trainer.resume("run", fall_back=True)
    assert trainer.step == 18
    trainer.fit()
    whole = arrays_of(run / "step_20")
    assert all((whole[k] == v).all() for k, v in arrays_of(Path("run/step_20")).items())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ENOMEM])
@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "run"])
def test_what_cannot_be_read_just_now_is_not_passed_over(
    run: Path, tmp_path: Path, monkeypatch: Any, name: str, number: int
) -> None:
    """An error of the machine is no damage: one line, and no older checkpoint in its place."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    before = snapshot(tmp_path / "run")
    real, real_list = io.open, os.listdir

    def opened(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith(f"step_20/{name}"):
            raise OSError(number, "something else")
        return real(file, *args, **kwargs)

    def listed(path: Any = ".") -> Any:
        if Path(path).name == name:
            raise OSError(number, "something else")
        return real_list(path)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", opened)
        patch.setattr(os, "listdir", listed)
        with pytest.raises(UnreadableError, match="just now .something else.") as caught:
            Trainer.resume("run", fall_back=True)
        assert "\n" not in str(caught.value)
        with pytest.raises(UnreadableError):
            newest_whole("run")
    assert snapshot(tmp_path / "run") == before
    assert Trainer.resume("run", fall_back=True).step == 20


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["step_20/state.json", "step_20/model.safetensors", "latest"])
def test_what_cannot_be_looked_at_is_not_passed_over(
    run: Path, tmp_path: Path, monkeypatch: Any, name: str, number: int
) -> None:
    """Not even whether a file is there can be told: it is not taken for missing."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    if name == "latest":  # as where there are no links
        (tmp_path / "run/latest").unlink()
        (tmp_path / "run/latest").write_text("step_20\n")
    real = os.stat

    def looked(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith(name):
            raise OSError(number, "something else")
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", looked)
        with pytest.raises(UnreadableError, match="just now .something else.") as caught:
            Trainer.resume("run", fall_back=True)
        assert "\n" not in str(caught.value)
    assert Trainer.resume("run", fall_back=True).step == 20


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_the_best_is_not_another_one_while_its_name_cannot_be_read(
    run: Path, tmp_path: Path, monkeypatch: Any, number: int
) -> None:
    """What the newest checkpoint says of the best cannot be read: a stale link is not believed."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    os.unlink("run/best")
    os.symlink("step_18", "run/best")
    real = io.open

    def opened(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith("step_20/state.json"):
            raise OSError(number, "something else")
        return real(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr(io, "open", opened)
    with pytest.raises(UnreadableError, match="step_20/state.json: cannot be read just now"):
        load_checkpoint("run/best")


def test_nothing_whole_is_left(run: Path, tmp_path: Path) -> None:
    """The damaged file is named."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    for folder in list_checkpoints(tmp_path / "run"):
        damage(folder / "carry.safetensors", "cut", 0.5)
    assert newest_whole("run") is None
    with pytest.raises(CheckpointError, match="carry.safetensors: its SHA-256 differs"):
        Trainer.resume("run", fall_back=True)
    with pytest.raises(CheckpointError, match="gone: no such run"):
        Trainer.resume("gone")


def test_weights_alone_cannot_be_resumed(run: Path, tmp_path: Path) -> None:
    """A checkpoint written by save_checkpoint without the rest."""
    import mlx_trm as trm

    loaded = load_checkpoint(run)
    trm.save_checkpoint(tmp_path / "alone", loaded.model, loaded.config, 3)
    with pytest.raises(CheckpointError, match="holds weights only and cannot be resumed"):
        Trainer.resume("alone")


def test_a_disk_that_is_full(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """At every write of a save: one line, the earlier checkpoint whole, and it can be resumed."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    real = {name: getattr(os, name) for name in ("fsync", "replace")}
    real_save = mx.save_safetensors
    for fails_at in range(12):
        trainer = Trainer.resume("run", ["train.max_steps=60"])
        left = [fails_at]

        def failing(function: Callable, counter: List[int] = left) -> Callable:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                counter[0] -= 1
                if counter[0] < 0:
                    raise OSError(28, "No space left on device")
                return function(*args, **kwargs)

            return wrapped

        monkeypatch.setattr(mx, "save_safetensors", failing(real_save))
        for name, function in real.items():
            monkeypatch.setattr(os, name, failing(function))
        try:
            with pytest.raises((CheckpointError, ConfigError), match="No space left on device"):
                trainer.fit(on_tick=stop_at(trainer, 21))
        finally:
            monkeypatch.setattr(mx, "save_safetensors", real_save)
            for name, function in real.items():
                monkeypatch.setattr(os, name, function)
        assert newest_whole("run") == Path("run/step_20")
        assert load_checkpoint("run").step == 20
    assert not list(Path("run").glob(".step_*"))


def test_a_file_size_limit_while_saving(run: Path, tmp_path: Path) -> None:
    """The system itself refuses to write: exit code 2, one line, earlier checkpoints whole."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "sys.path.insert(0, sys.argv[1]); import marks; from mlx_trm.__main__ import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "sys.exit(main(['train', '--resume', 'run', 'train.max_steps=23', '-q']))"
    )
    done = run_python("-c", code, HELPERS)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    assert newest_whole("run") == Path("run/step_20")


# One process at a time -------------------------------------------------------------------------


def test_a_second_process_is_refused(run: Path, tmp_path: Path) -> None:
    """With a clear line; and let in when the first is done, however it ended."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    code = (
        "import sys, time; from pathlib import Path; from mlx_trm.runs.folder import RunLock; "
        "lock = RunLock(Path('run')); print('locked', flush=True); time.sleep(1000)"
    )
    with started([sys.executable, "-c", code]) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        trainer = Trainer.resume("run", ["train.max_steps=30"])
        with pytest.raises(ConfigError, match=f"run is in use by process {other.pid}; wait"):
            trainer.fit()
        other.kill()
        other.wait()
    trainer.fit()
    RunLock(Path("run")).release()


# Killed ----------------------------------------------------------------------------------------

WORDS = [
    "--config", "sudoku_tiny.yaml", "-q", "--device", "cpu", "--resume", "auto",
    "task.train_puzzles=64", "task.test_puzzles=16", "train.batch_size=8",
    "train.log_interval=3", "train.lr_warmup_steps=5", "checkpoint.every=2",
]  # fmt: skip

# The command, which ends itself at the n-th thing it does to a file, without any clean-up. Where
# that writes an array file, the file is left half written.
ENDING_ITSELF = """
import os, signal, sys
import mlx.core as mx
from mlx_trm.train import main

left = int(sys.argv[1])

def counted(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            if function is save:
                function(*args, **kwargs)
                os.truncate(args[0], os.path.getsize(args[0]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

save = mx.save_safetensors
mx.save_safetensors = counted(save)
for name in ("fsync", "replace", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
sys.exit(main(sys.argv[2:]))
"""


def newest(run: Path) -> int:
    """The step of the newest whole checkpoint, 0 without one."""
    whole = newest_whole(run)
    return 0 if whole is None else int(whole.name[5:])


@pytest.mark.parametrize("kills", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_at_any_file(kills: int, tmp_path: Path) -> None:
    """SIGKILL at several moments of writing, one after the other; then to the end.

    The moments are drawn anew each time; their seed is in the message if it fails.
    """
    words = [*WORDS, "train.epochs=8", "eval.interval=2"]
    assert train([*words, "run_dir=whole"]) == 0
    assert len(log_of(tmp_path / "whole")) > 20
    seed = random.SystemRandom().randrange(1 << 30)
    rng = random.Random(seed)
    run, reached = tmp_path / "run", []
    for moment in [*(rng.randrange(5, 60) for _ in range(kills - 1)), 60]:
        done = run_python("-c", ENDING_ITSELF, moment, *words, "run_dir=run")
        assert done.returncode == -signal.SIGKILL, f"seed {seed}: {done.stderr}"
        reached.append(newest(run))
    assert reached == sorted(reached), f"a checkpoint was lost, seed {seed}"
    assert 0 < reached[-1] < 64
    assert train([*words, "run_dir=run"]) == 0
    assert_same_run(tmp_path / "whole", run)
    assert not list(run.glob(".step_*")), f"seed {seed}"


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Up to twenty times SIGKILL, half of them while a checkpoint is written; then to the end.

    How often it is killed before it ends depends on how busy the machine is.
    """
    words = [*WORDS, "train.epochs=64", "eval.interval=16"]
    assert train([*words, "run_dir=whole"]) == 0
    seed = random.SystemRandom().randrange(1 << 30)
    rng = random.Random(seed)
    run, reached = tmp_path / "run", [0]
    for number in range(20):
        with started([sys.executable, "-m", "mlx_trm.train", *words, "run_dir=run"]) as process:
            # First let it get somewhere, so that it ends after so many kills.
            wait_until(lambda: newest(run) > reached[-1] or process.poll() is not None)
            if number % 2:
                wait_until(lambda: list(run.glob(".step_*")) or process.poll() is not None)
                time.sleep(rng.random() * 0.002)
            else:
                time.sleep(rng.random() * 0.05)
            process.kill()
            process.communicate(timeout=LIMIT)
        assert process.returncode in (-signal.SIGKILL, 0), f"seed {seed}"
        reached.append(newest(run))
        if process.returncode == 0:
            break
    assert reached == sorted(reached), f"a checkpoint was lost, seed {seed}"
    assert train([*words, "run_dir=run"]) == 0
    assert_same_run(tmp_path / "whole", run)
    assert not list(run.glob(".step_*"))


# Not finite ------------------------------------------------------------------------------------


def poison(trainer: Trainer, monkeypatch: Any, step: int) -> None:
    """Make one step's loss infinite by its weights, which are right again afterwards."""
    take = type(trainer.train_step).__call__

    def poisoned(self: TrainStep, batch: Any) -> Any:
        if self.step + 1 != step:
            return take(self, batch)
        whole = self.model.lm_head.weight
        self.model.lm_head.weight = whole * mx.inf
        try:
            return take(self, batch)
        finally:
            self.model.lm_head.weight = whole

    monkeypatch.setattr(TrainStep, "__call__", poisoned)


def test_a_step_that_is_not_finite_stops_with_everything_saved(
    whole: Path, monkeypatch: Any
) -> None:
    """The state before it, what entered it, and a line that says what to do; it can be resumed."""
    trainer = Trainer(short("run"))
    with monkeypatch.context() as patch:
        poison(trainer, patch, 7)
        with pytest.raises(NonFiniteError, match="step 7: .*lower train.lr.*nonfinite_step_7"):
            trainer.fit()
    saved = dict(mx.load("run/nonfinite_step_7.safetensors"))
    assert saved["part0.batch.inputs"].shape == (6, 5) and "part0.carry.1" in saved
    Trainer.resume("run").fit()
    assert_same_run(whole, Path("run"))


def test_a_step_that_is_not_finite_can_be_skipped(monkeypatch: Any) -> None:
    """It is counted, logged, and training goes on."""
    trainer = Trainer(short("run", train__on_nonfinite="skip"))
    poison(trainer, monkeypatch, 7)
    report = trainer.fit()
    assert report.skipped == 1 and report.steps == 60
    skipped = [line for line in log_of(Path("run")) if line["kind"] == "skipped"]
    assert skipped == [{"kind": "skipped", "step": 7, "replay": "nonfinite_step_7.safetensors"}]
    assert all(np.isfinite(array).all() for array in arrays_of(Path("run/latest")).values())


# The best --------------------------------------------------------------------------------------


def test_the_best_is_kept_and_patience_ends(monkeypatch: Any) -> None:
    """The link follows the metric; after so many evaluations without a better one it stops.

    One that measured nothing is none of them.
    """
    config = experiment(run_dir="run", train__epochs=60, eval__interval=10, checkpoint__keep=1,
                        eval__patience=2, eval__best_metric="lm_loss")  # fmt: skip
    trainer = Trainer(config)
    losses = iter([float("nan"), 1.0, 2.0, float("inf"), 1.5, 9.0])
    real = trainer.run.evaluator.run

    def run(*args: Any, **kwargs: Any) -> Any:
        return {name: {**v, "lm_loss": next(losses)} for name, v in real(*args, **kwargs).items()}

    monkeypatch.setattr(trainer.run.evaluator, "run", run)
    report = trainer.fit()
    assert report.steps == 200 and report.reason == "no better lm_loss in 2 evaluations"
    assert not report.interrupted and Trainer.resume("run").finished()
    assert not Trainer.resume("run", ["eval.patience=3"]).finished()
    assert [path.name for path in list_checkpoints("run")] == ["step_80", "step_200"]
    assert Path("run/best").readlink() == Path("step_80")
    assert load_checkpoint("run/best").step == 80


def test_an_unknown_best_metric() -> None:
    """Refused before the first step."""
    with pytest.raises(
        ConfigError, match="eval.best_metric: no metric 'acuracy'; did you mean 'accuracy'"
    ):
        Trainer(experiment(eval__best_metric="acuracy"))
