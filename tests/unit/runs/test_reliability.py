"""What a run promises besides going on to the bit; docs/reliability.md has the list."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, Callable, List

import mlx.core as mx
import pytest
from marks import experiment
from run_files import arrays_of, log_of

from mlx_trm.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from mlx_trm.runs.checkpoint import load_checkpoint
from mlx_trm.runs.folder import RunLock
from mlx_trm.runs.history import prune_checkpoints, remove_leftovers
from mlx_trm.runs.layout import find_checkpoint, list_checkpoints
from mlx_trm.runs.state import own_hash, read_state
from mlx_trm.system import files
from mlx_trm.system.files import owner_name, write_text
from mlx_trm.train import main as train
from mlx_trm.training import loop, nonfinite
from mlx_trm.training.step import TrainStep
from mlx_trm.training.trainer import Trainer

# No process has such a number.
GONE = owner_name().replace(str(os.getpid()), "4194999", 1)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def short(run: str = "run", **changes: Any) -> Any:
    """Three iterations of 8 steps, evaluated on six puzzles."""
    settings = {"train__epochs": 6, "eval__interval": 2, "eval__max_examples": 6}
    return experiment(run_dir=run, **{**settings, **changes})


def scored(monkeypatch: Any, *values: float) -> None:
    """Give evaluations their results, one after the other."""
    left = list(values)
    monkeypatch.setattr(loop, "best_value", lambda *_args: left.pop(0))


def names(run: str = "run") -> List[str]:
    """What lies in a run folder."""
    return sorted(path.name for path in Path(run).iterdir())


@pytest.fixture(name="whole", scope="module")
def make_whole(tmp_path_factory: Any) -> Path:
    """An uninterrupted run, to be read only."""
    folder: Path = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_TRM_CACHE", str(folder / "cache"))
        Trainer(short(str(folder / "run"))).fit()
    return folder / "run"


def assert_same_run(one: Path, other: Path) -> None:
    """The same log and the same newest arrays, to the bit."""
    assert log_of(one) == log_of(other)
    want, have = (arrays_of(find_checkpoint(run)) for run in (one, other))
    assert set(want) == set(have) and all((want[name] == have[name]).all() for name in want)


# Links and pruning follow the saved progress -----------------------------------------------------


def test_the_best_is_what_the_progress_says(monkeypatch: Any) -> None:
    """A link that a killed process did not move any more is moved, and its target not pruned."""
    scored(monkeypatch, 0.5, 0.9, 0.7)
    Trainer(short(checkpoint__keep=1)).fit()
    for stale in ("step_24", None):
        Path("run/best").unlink()
        if stale:
            Path("run/best").symlink_to(stale)
        Trainer.resume("run").settle()
        assert Path("run/best").readlink() == Path("step_16")
    assert [path.name for path in list_checkpoints("run")] == ["step_16", "step_24"]


def test_a_link_that_was_not_moved_is_not_believed(monkeypatch: Any) -> None:
    """Who evaluates ``run/best`` or ``run/latest`` before the run goes on gets the right one."""
    scored(monkeypatch, 0.5, 0.9, 0.7)
    Trainer(short(checkpoint__keep=9)).fit()
    assert load_checkpoint("run/best").step == 16 and load_checkpoint("run/latest").step == 24
    for stale in ("step_8", None):
        for name in ("best", "latest"):
            os.unlink(f"run/{name}")
            if stale:
                os.symlink(stale, f"run/{name}")
        assert load_checkpoint("run/best").step == 16
        if stale:
            assert load_checkpoint("run/latest").step == 24
            assert Trainer.resume("run/best").step == 16


def test_pruning_asks_the_progress_and_not_the_link(monkeypatch: Any) -> None:
    """The link says another one is the best; a file that is no link is not followed at all."""
    scored(monkeypatch, 0.9, 0.5, 0.7)
    Trainer(short(checkpoint__keep=9)).fit()
    os.unlink("run/best")
    os.symlink("step_16", "run/best")
    prune_checkpoints("run", 1, 8)
    assert [path.name for path in list_checkpoints("run")] == ["step_8", "step_24"]


def test_a_run_that_was_killed_at_its_very_end_is_put_right(monkeypatch: Any) -> None:
    """By the command, which has nothing else to do."""
    scored(monkeypatch, 0.1, 0.2, 0.3)
    Trainer(short(checkpoint__keep=9)).fit()
    before = names()
    os.unlink("run/latest")
    os.symlink("step_16", "run/latest")
    os.unlink("run/best")
    os.mkdir(f"run/.step_24.old-{GONE}")
    assert train(["--resume", "run", "-q"]) == 0
    assert Path("run/latest").readlink() == Path("run/best").readlink() == Path("step_24")
    assert names() == before


# The log ----------------------------------------------------------------------------------------


def test_a_log_that_is_shorter_than_the_checkpoint_says_is_refused() -> None:
    """Before anything is changed; without a log a new one is begun, and that can be resumed."""
    Trainer(short(train__max_steps=12)).fit()
    log = Path("run/metrics.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    trainer = Trainer.resume("run", ["train.max_steps=14"])
    with pytest.raises(
        CheckpointError, match=r"metrics.jsonl: has 4 lines, and .* after 5"
    ) as caught:
        trainer.fit()
    assert "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    log.unlink()
    Trainer.resume("run", ["train.max_steps=14"]).fit()
    assert [line["step"] for line in log_of(Path("run"))] == [14, 14]
    Trainer.resume("run", ["train.max_steps=15"]).fit()


def test_the_log_of_what_is_put_aside_is_kept() -> None:
    """In the newest of the checkpoints that are put aside; it could be put back."""
    Trainer(short(checkpoint__keep=9)).fit()
    content = Path("run/metrics.jsonl").read_bytes()
    trainer = Trainer.resume("run/step_8")
    trainer.fit(on_tick=lambda step: trainer.stop())
    assert Path("run/aside_step_24/metrics.jsonl").read_bytes() == content
    assert len(content.splitlines()) > len(log_of(Path("run")))


# Save, then evaluate, then record ----------------------------------------------------------------


@pytest.mark.parametrize("fails_at", [1, 3])
def test_an_evaluation_that_fails_loses_no_step(
    fails_at: int, whole: Path, monkeypatch: Any
) -> None:
    """The first and the last one; gone on with, it is as if nothing had been."""
    trainer = Trainer(short())
    real, count = trainer.run.evaluator.run, [0]

    def run(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == fails_at:
            raise MemoryError("the evaluation needs too much")
        return real(*args, **kwargs)

    monkeypatch.setattr(trainer.run.evaluator, "run", run)
    with pytest.raises(MemoryError):
        trainer.fit()
    step = 8 * fails_at
    assert find_checkpoint("run").name == f"step_{step}"
    resumed = Trainer.resume("run")
    assert resumed.step == step and resumed.progress.evaluate_first and not resumed.finished()
    resumed.fit()
    assert_same_run(whole, Path("run"))
    assert Trainer.resume("run").finished()


def test_what_is_called_after_an_evaluation_may_fail(whole: Path) -> None:
    """The evaluation is recorded before ``on_eval`` hears of it."""

    def fails(_event: Any) -> None:
        raise ValueError("a bug of the user's")

    with pytest.raises(ValueError, match="a bug of the user's"):
        Trainer(short()).fit(on_eval=fails)
    assert Trainer.resume("run").progress.evaluated == 8
    Trainer.resume("run").fit()
    assert_same_run(whole, Path("run"))


# Ctrl-C in Python --------------------------------------------------------------------------------


def press(*_args: Any) -> None:
    """Ctrl-C, as the system brings it."""
    os.kill(os.getpid(), signal.SIGINT)


def raises(*_args: Any) -> None:
    """Ctrl-C, as it arrives where another handler raises it."""
    raise KeyboardInterrupt


def at(step: int, do: Callable[..., None]) -> Callable[..., None]:
    """Do it once that step is done."""
    return lambda number: do() if getattr(number, "step", number) == step else None


@pytest.fixture(autouse=True)
def as_python_begins() -> Any:
    """The handler that Python sets, whatever the tests were started from."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("do", [press, raises])
@pytest.mark.parametrize(
    "when, step",
    [("on_tick", 5), ("on_tick", 8), ("on_step", 8), ("on_eval", 8), ("on_eval_progress", 8)],
)
def test_ctrl_c_returns_a_report(do: Any, when: str, step: int, whole: Path) -> None:
    """In the middle of an iteration, at its end, after and during an evaluation; to the bit."""
    call = do if when.startswith("on_eval") else at(step, do)
    report = Trainer(short()).fit(**{when: call})
    assert (report.interrupted, report.reason, report.steps) == (True, "stopped", step)
    assert report.checkpoint == Path(f"run/step_{step}")
    assert report.checkpoint.resolve() == find_checkpoint("run").resolve()
    assert len(report.evaluations) == (when == "on_eval")
    Trainer.resume("run").fit()
    assert_same_run(whole, Path("run"))


def test_ctrl_c_while_a_step_is_taken(whole: Path, monkeypatch: Any) -> None:
    """It is finished, and nothing is half updated."""
    real = TrainStep._take_whole

    def take(self: TrainStep, *args: Any) -> Any:
        if self.step == 4:
            press()
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "_take_whole", take)
        report = Trainer(short()).fit()
    assert report.interrupted and report.steps == 5
    Trainer.resume("run").fit()
    assert_same_run(whole, Path("run"))


def test_a_step_that_another_handler_interrupts_is_abandoned(whole: Path, monkeypatch: Any) -> None:
    """The state before it is saved."""
    real = TrainStep._take_whole

    def take(self: TrainStep, *args: Any) -> Any:
        result = real(self, *args)
        if self.step == 4:
            raises()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "_take_whole", take)
        report = Trainer(short()).fit()
    assert report.interrupted and report.steps == 4
    Trainer.resume("run").fit()
    assert_same_run(whole, Path("run"))


def test_a_second_ctrl_c_is_raised(monkeypatch: Any) -> None:
    """While the first one's checkpoint is saved, say."""
    monkeypatch.setattr(loop, "save_checkpoint", press)
    with pytest.raises(KeyboardInterrupt):
        Trainer(short()).fit(on_tick=at(3, press))


def test_a_handler_that_is_there_already_is_left_alone() -> None:
    """Such as that of a command."""
    came: List[int] = []
    signal.signal(signal.SIGINT, lambda *_args: came.append(1))
    try:
        report = Trainer(short(train__max_steps=6)).fit(on_tick=at(3, press))
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert came == [1] and report.steps == 6 and not report.interrupted


# state.json -------------------------------------------------------------------------------------


def test_the_fields_of_a_state_have_a_hash_of_their_own() -> None:
    """Any field that is changed, and makes sense, is noticed; a state without the hash is older."""
    Trainer(short(train__max_steps=2)).fit()
    path = Path("run/step_2/state.json")
    state = json.loads(path.read_text())
    assert state["own_sha256"] == own_hash(state)
    changes = [{"step": 3}, {"progress": {**state["progress"], "batches": 1}},
               {"spec": {**state["spec"], "vocab_size": 7}}, {"own_sha256": "0" * 64},
               {"new": 1}, {"sha256": {**state["sha256"], "more": ""}}]  # fmt: skip
    for change in changes:
        path.write_text(json.dumps({**state, **change}))
        for read in (load_checkpoint, Trainer.resume):
            with pytest.raises(CheckpointError, match=r"state\.json: damaged .*own_sha256"):
                read("run")
    digest = state.pop("own_sha256")
    path.write_text(json.dumps({**state, "Own_sha256": digest}))
    with pytest.raises(CheckpointError, match="unknown fields and no own_sha256"):
        load_checkpoint("run")
    path.write_text(json.dumps(state))
    assert Trainer.resume("run", ["train.max_steps=4"]).fit().steps == 4
    assert "own_sha256" in read_state(Path("run/step_4"))


# File systems that cannot do everything ---------------------------------------------------------


def refuse(number: int) -> Callable[..., None]:
    """A call that the file system refuses."""

    def call(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES])
def test_without_symbolic_links(number: int, whole: Path, monkeypatch: Any) -> None:
    """exFAT, some network shares: links are small files, which everything follows."""
    monkeypatch.setattr(Path, "symlink_to", refuse(number))
    scored(monkeypatch, 0.9, 0.5, 0.1, 0.1)
    trainer = Trainer(short(checkpoint__keep=1))
    trainer.fit(on_tick=lambda step: trainer.stop() if step == 20 else None)
    assert Path("run/latest").read_text() == "step_20\n" and not Path("run/latest").is_symlink()
    assert load_checkpoint("run/best").step == 8 and load_checkpoint("run/latest").step == 20
    assert Trainer.resume("run/latest").step == 20
    Path("run/latest").write_text("step_8\n")  # left behind by a kill
    assert find_checkpoint("run").name == "step_20"
    Trainer.resume("run").fit()
    assert_same_run(whole, Path("run"))
    assert [path.name for path in list_checkpoints("run")] == ["step_8", "step_24"]
    for junk in ("step_8/../../x", "elsewhere", "", "step_99\n"):
        Path("run/latest").write_text(junk)
        assert find_checkpoint("run").name == "step_24"
        with pytest.raises(CheckpointError, match="latest: is a file"):
            find_checkpoint("run/latest")
    assert not [name for name in names() if ".tmp" in name]


def test_a_copy_whose_links_have_become_folders() -> None:
    """As copying to such a file system makes them: put aside, nothing is lost."""
    Trainer(short(train__max_steps=4)).fit()
    shutil.copytree("run", "copy")
    assert not Path("copy/latest").is_symlink() and Path("copy/latest").is_dir()
    Trainer.resume("copy", ["train.max_steps=6"]).fit()
    assert Path("copy/latest").readlink() == Path("step_6")
    assert (Path("copy/aside_latest/state.json")).is_file()


def test_folders_that_cannot_be_flushed(monkeypatch: Any) -> None:
    """Some network shares; a file that cannot is an error."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if not os.path.isfile(f"/dev/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    assert Trainer(short(train__max_steps=2)).fit().steps == 2
    monkeypatch.setattr(files.os, "fsync", refuse(errno.EINVAL))
    with pytest.raises(OSError):
        write_text("x", "content")


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL])
def test_without_locks(number: int, monkeypatch: Any, caplog: Any) -> None:
    """Said, and gone on; "in use" is only what really is."""
    import fcntl

    monkeypatch.setattr(fcntl, "flock", refuse(number))
    assert Trainer(short(train__max_steps=2)).fit().steps == 2
    assert Trainer.resume("run", ["train.max_steps=4"]).fit().steps == 4
    assert "cannot be locked on this file system" in caplog.text and "in use" not in caplog.text
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EAGAIN))
    with pytest.raises(ConfigError, match="is in use by another process"):
        Trainer.resume("run", ["train.max_steps=6"]).fit()


# Leftovers --------------------------------------------------------------------------------------


def leave(*left: str) -> None:
    """Make what killed processes leave: folders, where a name ends in a slash."""
    for name in left:
        path = Path("run") / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("x")


LEFT = (
    f".step_9.tmp-{GONE}/", ".step_9.tmp-12345/", f".step_3.gone-{GONE}/", f".latest.tmp-{GONE}",
    f".best.tmp-{GONE}", f".config.{GONE}.tmp.yaml", ".config.12345.tmp.yaml",
    f".metrics.{GONE}.tmp.jsonl", f"step_2/.state.{GONE}.tmp.json",
    f"evaluations/step_2/.submission.{GONE}.tmp.json",
)  # fmt: skip


def test_what_killed_processes_left_in_a_run_goes() -> None:
    """When it goes on, and when a run that had saved nothing is begun anew; nothing else goes."""
    Trainer(short(train__max_steps=2)).fit()
    leave(".mine.tmp", "notes.txt", ".step_9.tmp-mine/")
    before = sorted(Path("run").rglob("*"))
    leave(*LEFT)
    Trainer.resume("run").fit()
    shutil.rmtree("run/evaluations")
    assert sorted(Path("run").rglob("*")) == before
    shutil.rmtree("run")
    leave("config.yaml", *(name for name in LEFT if not name.startswith("step_2")))
    Trainer(short(train__max_steps=2), restart=True).fit()
    assert not list(Path("run").glob(".*[0-9]*"))


def test_without_a_lock_only_what_is_abandoned_goes() -> None:
    """Another process may be at work there."""
    leave(f".step_9.tmp-{GONE}/", f".step_9.tmp-{owner_name()}/", f".config.{GONE}.tmp.yaml")
    leave(f".config.{owner_name()}.tmp.yaml", ".step_9.tmp-12345/", "step_9/")
    remove_leftovers(Path("run"), owned=False)
    assert names() == sorted(
        [f".step_9.tmp-{owner_name()}", f".config.{owner_name()}.tmp.yaml", ".step_9.tmp-12345",
         "step_9"]
    )  # fmt: skip


def test_a_file_that_is_written_again_clears_its_own_leftovers(tmp_path: Path) -> None:
    """Of processes that are gone; files of other names, and of other machines, stay."""
    kept = [f".a.{owner_name()}.tmp.txt", f".b.{GONE}.tmp.txt", f".a.{GONE}.tmp.json",
            f".a.{GONE[:-8]}00000000.tmp.txt"]  # fmt: skip
    for name in (*kept, f".a.{GONE}.tmp.txt"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("half")
    os.utime(tmp_path / "out" / kept[3])
    write_text(tmp_path / "out" / "a.txt", "whole")
    assert sorted(os.listdir("out")) == sorted(["a.txt", *kept[1:]])


def test_a_checkpoint_is_never_half_removed(monkeypatch: Any) -> None:
    """It is renamed first: what cannot be removed is no checkpoint any more, and goes later."""
    Trainer(short(checkpoint__keep=9, train__max_steps=16)).fit()
    with monkeypatch.context() as patch:
        patch.setattr("mlx_trm.runs.history.shutil.rmtree", lambda *_args, **_kwargs: None)
        prune_checkpoints("run", 1)
    assert [path.name for path in list_checkpoints("run")] == ["step_16"]
    (left,) = Path("run").glob(".step_8.gone-*")
    assert (left / "state.json").is_file()
    RunLock(Path("run")).release()
    Trainer.resume("run", ["train.max_steps=17"]).fit()
    assert not left.exists()


def test_a_checkpoint_that_was_being_replaced_is_put_back(whole: Path) -> None:
    """Before the newest one is looked for."""
    trainer = Trainer(short())
    trainer.fit(on_tick=lambda step: trainer.stop() if step == 12 else None)
    os.rename("run/step_12", f"run/.step_12.old-{GONE}")
    resumed = Trainer.resume("run")
    assert resumed.step == 12
    resumed.fit()
    assert_same_run(whole, Path("run"))


# Not finite -------------------------------------------------------------------------------------


def poison(monkeypatch: Any, *steps: int) -> None:
    """Make the loss of some steps infinite."""
    take = TrainStep.__call__

    def poisoned(self: TrainStep, batch: Any) -> Any:
        kept = self.model.lm_head.weight
        if self.step + 1 in steps:
            self.model.lm_head.weight = kept * mx.inf
        try:
            return take(self, batch)
        finally:
            if self.step + 1 in steps or self.step in steps:
                self.model.lm_head.weight = kept

    monkeypatch.setattr(TrainStep, "__call__", poisoned)


def test_skipping_keeps_few_files_and_gives_up(monkeypatch: Any) -> None:
    """After a stated number of steps in a row, with the state before the last one saved."""
    poison(monkeypatch, 2, 3, 4, *range(6, 60))
    monkeypatch.setattr(nonfinite, "REPLAYS", 2)
    monkeypatch.setattr(loop, "GIVE_UP", 5)
    with pytest.raises(NonFiniteError, match="not finite in 5 steps in a row; lower") as caught:
        Trainer(short(train__on_nonfinite="skip")).fit()
    assert "\n" not in str(caught.value) and caught.value.step == 10
    found = sorted(path.name for path in Path("run").glob("nonfinite_*"))
    assert found == ["nonfinite_step_10.safetensors", "nonfinite_step_9.safetensors"]
    resumed = Trainer.resume("run")
    assert resumed.step == 9 and resumed.progress.skipped_in_row == 0


def test_steps_in_a_row_are_counted_through_a_stop(monkeypatch: Any) -> None:
    """A run that is always started again gives up, too."""
    poison(monkeypatch, *range(2, 60))
    monkeypatch.setattr(loop, "GIVE_UP", 5)
    trainer = Trainer(short(train__on_nonfinite="skip"))
    assert trainer.fit(on_tick=lambda step: trainer.stop() if step == 4 else None).skipped == 3
    with pytest.raises(NonFiniteError, match="step 6: .* 5 steps in a row"):
        Trainer.resume("run").fit()


# Data that change under a run -------------------------------------------------------------------


def test_data_that_are_cut_while_a_run_trains(whole: Path) -> None:
    """No other tokens are learnt: the steps so far are saved, and it goes on to the bit."""
    task = Trainer(short()).run.task
    task.build("data")
    path = Path("data/train/all__labels.npy")
    content = path.read_bytes()

    def cut(step: int) -> None:
        if step == 11:
            os.truncate(path, len(content) - 30)

    with pytest.raises(DataError, match="all__labels.npy: was changed while it was in use"):
        Trainer(short(task__data_dir="data")).fit(on_tick=cut)
    assert find_checkpoint("run").name in ("step_11", "step_12")  # one batch was made before
    with pytest.raises(DataError, match="all__labels.npy: is damaged"):
        Trainer.resume("run")
    path.write_bytes(content)
    Trainer.resume("run").fit()
    assert_same_run(whole, Path("run"))
