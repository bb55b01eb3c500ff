"""Reporters: the same lines to TensorBoard and Weights & Biases, and no run stops for them."""

import builtins
import io
import json
import logging
import os
import sys
import types
from pathlib import Path
from typing import Any, Dict, List, Mapping

import pytest

from mlx_trm.errors import ConfigError
from mlx_trm.runs import reporters as reporting
from mlx_trm.runs.reporters import Reporter, check_reporters, make_reporters, scalars

CONFIG = {"task": {"name": "sudoku", "symmetries": ["digits"]}, "train": {"lr": 1e-3, "ema": True}}
TRAIN = {"kind": "train", "lm_loss": 2.0, "count": 5.0, "step": 10, "total": 60, "lr": 4e-4}
EVAL = {"kind": "eval", "step": 20, "set": "all", "exact_accuracy": 0.25, "ARC/pass@2": 0.5}


# Lines ------------------------------------------------------------------------------------------


def test_tags() -> None:
    """Sections and sets stand before the name; what a line is about is no value."""
    assert scalars(TRAIN) == {"train/lm_loss": 2.0, "train/count": 5.0, "train/lr": 4e-4}
    assert scalars(EVAL) == {"eval/all/exact_accuracy": 0.25, "eval/all/ARC/pass@2": 0.5}


def test_what_is_no_finite_number_is_left_out() -> None:
    """NaN, infinity, text, bool, null and lists."""
    odd = {"a": float("nan"), "b": float("inf"), "c": "x", "d": True, "e": None, "f": [1], "g": 3}
    assert scalars({"kind": "train", "step": 1, **odd}) == {"train/g": 3.0}


# Making them ------------------------------------------------------------------------------------


class Recorder(Reporter):
    """Keeps what it is told; fails where it is told to."""

    made: List["Recorder"] = []

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self.run, self.config = run, config
        self.lines: List[Mapping[str, Any]] = []
        self.closed = 0
        self.fail_at, self.fail_to_close = -1, False
        Recorder.made.append(self)

    def report(self, line: Mapping[str, Any]) -> None:
        if len(self.lines) == self.fail_at:
            raise OSError(28, "No space left\non device")
        self.lines.append(line)

    def close(self) -> None:
        self.closed += 1
        if self.fail_to_close:
            raise RuntimeError("cannot close")


@pytest.fixture(name="recorder")
def make_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A reporter under the name tensorboard, guarded, and what is inside."""
    monkeypatch.setitem(reporting.REPORTERS, "tensorboard", Recorder)
    monkeypatch.setitem(reporting.MODULES, "tensorboard", [("json", "dumps")])
    Recorder.made.clear()
    (guarded,) = make_reporters(["tensorboard", "tensorboard"], tmp_path, CONFIG)
    (inner,) = Recorder.made
    return guarded, inner


def test_lines_go_through_unchanged(recorder: Any, tmp_path: Path) -> None:
    """The very dicts, the run and the configuration; closed once."""
    guarded, inner = recorder
    guarded.report(TRAIN)
    guarded.report(EVAL)
    guarded.close()
    guarded.close()
    guarded.report(TRAIN)
    assert inner.lines == [TRAIN, EVAL] and inner.lines[0] is TRAIN
    assert (inner.run, inner.config, inner.closed) == (tmp_path, CONFIG, 1)


def test_a_failure_is_one_warning_and_the_end_of_it(
    recorder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is raised, the reporter is closed and not asked again."""
    guarded, inner = recorder
    inner.fail_at, inner.fail_to_close = 1, True
    with caplog.at_level(logging.INFO, "mlx_trm"):
        for _ in range(4):
            guarded.report(TRAIN)
        guarded.close()
    assert [record.getMessage() for record in caplog.records] == [
        "tensorboard failed ([Errno 28] No space left on device); training goes on without it"
    ]
    assert caplog.records[0].levelno == logging.WARNING
    assert len(inner.lines) == 1 and inner.closed == 1


def test_a_failure_at_the_end_is_a_warning(recorder: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Closing does not raise."""
    guarded, inner = recorder
    inner.fail_to_close = True
    guarded.close()
    assert [record.getMessage() for record in caplog.records] == [
        "tensorboard failed (cannot close); its last lines may be missing"
    ]


def test_unknown_names() -> None:
    """A suggestion, and what is known."""
    with pytest.raises(ConfigError) as caught:
        check_reporters(["tensorbord"])
    assert str(caught.value) == (
        "train.report_to: unknown 'tensorbord'; did you mean 'tensorboard'? "
        "(known: tensorboard, wandb)"
    )


def test_none() -> None:
    """No names, no reporters, nothing imported."""
    assert not make_reporters([], Path("nowhere"), {})


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
@pytest.mark.parametrize("how", ["missing", "broken", "empty folder"])
def test_missing_packages(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that says what to install; nothing is written, by the other reporter either."""
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    if how == "broken":
        place = tmp_path / "path" / name
        place.mkdir(parents=True)
        (place / "__init__.py").write_text("raise AttributeError('no\\nfloat_')\n")
        monkeypatch.syspath_prepend(str(place.parent))
    else:
        # An empty folder of that name in the working folder is imported as an empty module.
        empty = None if how == "missing" else types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, empty)
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ConfigError) as caught:
        make_reporters([name], run, CONFIG)
    message = str(caught.value)
    why = "cannot be imported (no float_)" if how == "broken" else "needs a package that is missing"
    assert message.startswith(f"train.report_to: {name} {why}")
    assert message.endswith(f'; pip install --upgrade "mlx_trm[{name}]"')
    assert "\n" not in message and not list(run.iterdir())


def test_what_cannot_be_started_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line; reporters that have been started are closed."""

    def broken(run: Path, config: Mapping[str, Any]) -> Reporter:
        raise OSError(20, "Not a directory", str(run / "wandb"))

    monkeypatch.setitem(reporting.REPORTERS, "tensorboard", Recorder)
    monkeypatch.setitem(reporting.REPORTERS, "wandb", broken)
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(reporting.MODULES, name, [("json", "dumps")])
    Recorder.made.clear()
    with pytest.raises(ConfigError, match="train.report_to: wandb cannot be started .*directory"):
        make_reporters(["tensorboard", "wandb"], tmp_path, CONFIG)
    assert [made.closed for made in Recorder.made] == [1]


# TensorBoard ------------------------------------------------------------------------------------


def read_events(run: Path) -> Any:
    """What TensorBoard sees of a run."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen = accumulators.EventAccumulator(str(run / "tensorboard"))
    seen.Reload()
    return seen


def points(seen: Any, tag: str) -> List[Any]:
    """(step, value) of a tag."""
    return [(event.step, event.value) for event in seen.Scalars(tag)]


def test_tensorboard_reads_what_was_reported(tmp_path: Path) -> None:
    """Tags, steps and values; the configuration as hyperparameters; no torch, no TensorFlow."""
    pytest.importorskip("tensorboard")
    (reporter,) = make_reporters(["tensorboard"], tmp_path, CONFIG)
    reporter.report(TRAIN)
    reporter.report({**TRAIN, "step": 20, "lm_loss": float("nan"), "lr": 3e-4})
    reporter.report(EVAL)
    before_closing = read_events(tmp_path)
    assert points(before_closing, "eval/all/exact_accuracy") == [(20, 0.25)]
    reporter.close()
    seen = read_events(tmp_path)
    assert sorted(seen.Tags()["scalars"]) == [
        "eval/all/ARC/pass@2",
        "eval/all/exact_accuracy",
        "train/count",
        "train/lm_loss",
        "train/lr",
    ]
    assert points(seen, "train/lm_loss") == [(10, 2.0)]
    assert points(seen, "train/lr") == [(10, pytest.approx(4e-4)), (20, pytest.approx(3e-4))]
    metadata = pytest.importorskip("tensorboard.plugins.hparams.metadata")
    (content,) = seen.PluginTagToContent("hparams").values()
    held = metadata.parse_session_start_info_plugin_data(content).hparams
    assert held["train.lr"].number_value == 1e-3 and held["train.ema"].bool_value is True
    assert held["task.name"].string_value == "sudoku"
    assert held["task.symmetries"].string_value == '["digits"]'
    assert not {"torch", "tensorflow"} & set(sys.modules)


def test_tensorboard_of_a_resumed_run(tmp_path: Path) -> None:
    """Steps that are done again replace those of the first time."""
    pytest.importorskip("tensorboard")
    for first, value in ((10, 1.0), (30, 2.0)):
        (reporter,) = make_reporters(["tensorboard"], tmp_path, CONFIG)
        for step in range(first, 50, 10):
            reporter.report({"kind": "train", "step": step, "lm_loss": value})
        reporter.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    expected = [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    assert points(read_events(tmp_path), "train/lm_loss") == expected


def test_tensorboard_of_a_run_resumed_before_its_evaluation(tmp_path: Path) -> None:
    """The training of that step has been reported, and stays."""
    pytest.importorskip("tensorboard")
    for lines in ([TRAIN, {**TRAIN, "step": 20}], [EVAL, {**TRAIN, "step": 30}]):
        (reporter,) = make_reporters(["tensorboard"], tmp_path, CONFIG)
        for line in lines:
            reporter.report(line)
        reporter.close()
    seen = read_events(tmp_path)
    assert points(seen, "train/lm_loss") == [(10, 2.0), (20, 2.0), (30, 2.0)]
    assert points(seen, "eval/all/exact_accuracy") == [(20, 0.25)]


def test_tensorboard_folder_in_the_way(tmp_path: Path) -> None:
    """A file of that name is an error before training."""
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("mine")
    with pytest.raises(ConfigError, match="tensorboard cannot be started .*File exists"):
        make_reporters(["tensorboard"], tmp_path, CONFIG)
    assert (tmp_path / "tensorboard").read_text() == "mine"


class Message:
    """Stands for any protocol buffer: keeps what it is made with."""

    START = 1

    def __init__(self, **content: Any) -> None:
        self.content = content

    def SerializeToString(self) -> bytes:  # pylint: disable=invalid-name
        """Give the content as JSON."""
        return json.dumps(self.content, default=lambda m: m.content).encode() + b"\n"


class Records:
    """Stands for RecordWriter."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.write, self.flush, self.close = file.write, file.flush, file.close


@pytest.fixture(name="fake_tensorboard")
def make_fake_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few names of the package that are used, so that the rest is tested without it."""
    summary = type("Summary", (Message,), {"Value": Message})
    modules: Dict[str, Dict[str, Any]] = {
        "tensorboard.compat.proto.event_pb2": {"Event": Message, "SessionLog": Message},
        "tensorboard.compat.proto.summary_pb2": {"Summary": summary},
        "tensorboard.summary.writer.record_writer": {"RecordWriter": Records},
        "tensorboard.plugins.hparams.summary_v2": {
            "hparams_pb": lambda values, trial_id: Message(hparams=values, trial=trial_id)
        },
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        parts = name.split(".")
        for end in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType("package"))
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("fake_tensorboard")
def test_tensorboard_events(tmp_path: Path) -> None:
    """Version, hyperparameters, then a restart at the first step, then the lines as they come."""
    (reporter,) = make_reporters(["tensorboard"], tmp_path, {**CONFIG, "seed": None})
    reporter.report(TRAIN)
    reporter.report(EVAL)
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(event.pop("wall_time") > 1e9 for event in events)
    assert events[0] == {"file_version": "brain.Event:2"}
    assert events[1]["summary"]["trial"] == tmp_path.name
    assert events[1]["summary"]["hparams"] == {
        "task.name": "sudoku",
        "task.symmetries": '["digits"]',
        "train.lr": 1e-3,
        "train.ema": True,
        "seed": "null",
    }
    assert events[2] == {"step": 10, "session_log": {"status": 1}}
    assert events[3]["step"] == 10
    assert {v["tag"]: v["simple_value"] for v in events[3]["summary"]["value"]} == scalars(TRAIN)
    assert events[4]["step"] == 20 and len(events) == 5
    reporter.close()


@pytest.mark.usefixtures("fake_tensorboard")
def test_tensorboard_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The line that does not fit is noticed; one warning, and training goes on."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    (reporter,) = make_reporters(["tensorboard"], tmp_path, CONFIG)
    (path,) = (tmp_path / "tensorboard").iterdir()
    inner = reporter._inner  # type: ignore[attr-defined]  # pylint: disable=protected-access
    inner._records.close()  # pylint: disable=protected-access
    with open("/dev/full", "wb", buffering=0) as full:
        inner._records = Records(full)  # type: ignore[arg-type]
        for _ in range(3):
            reporter.report(TRAIN)
    reporter.close()
    assert [r.getMessage() for r in caplog.records] == [
        "tensorboard failed ([Errno 28] No space left on device); training goes on without it"
    ]
    assert path.exists()


# Weights & Biases -------------------------------------------------------------------------------


class FakeRun:
    """A run of the fake service."""

    def __init__(self, arguments: Dict[str, Any]) -> None:
        self.arguments = arguments
        self.logged: List[Dict[str, Any]] = []
        self.metrics: List[Any] = []
        self.finished = False
        self.url = "https://wandb.example/runs/1"
        self.dir = os.path.join(arguments["dir"], "wandb", "offline-run-1", "files")

    def define_metric(self, name: str, step_metric: str = "") -> None:
        """Keep it."""
        self.metrics.append((name, step_metric))

    def log(self, values: Dict[str, Any]) -> None:
        """Keep it."""
        self.logged.append(values)

    def finish(self) -> None:
        """Keep it."""
        self.finished = True


class FakeWandb(types.ModuleType):
    """The few names of the package that are used.

    Attributes:
        logged_in: whether it starts online without a question.
        calls: what happened, in order.
        runs: those started.
    """

    class Settings:
        """Keeps what it is made with."""

        finish_timeout: float = 0.0

        def __init__(self, **values: Any) -> None:
            self.values = values

    def __init__(self) -> None:
        super().__init__("wandb")
        self.logged_in = False
        self.calls: List[str] = []
        self.runs: List[FakeRun] = []

    def init(self, **arguments: Any) -> FakeRun:
        """Start, ask for a login in a terminal, or say that there is none."""
        mode = arguments.get("mode") or os.environ.get("WANDB_MODE") or "online"
        self.calls.append(mode)
        if mode == "online" and not self.logged_in:
            if sys.stdin.isatty():
                raise AssertionError("the user is asked")
            raise RuntimeError("No API key configured.\nUse `wandb login`")
        self.runs.append(FakeRun(arguments))
        return self.runs[-1]

    def teardown(self) -> None:
        """Keep it."""
        self.calls.append("teardown")


class Terminal(io.StringIO):
    """Standard input of a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(name="wandb")
def make_wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    """The fake service, in a terminal."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(sys, "stdin", Terminal())
    return fake


def test_wandb_online(wandb: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run, its configuration, and lines whose x axis is the supervision step."""
    wandb.logged_in = True
    terminal = sys.stdin
    with caplog.at_level(logging.INFO, "mlx_trm"):
        (reporter,) = make_reporters(["wandb"], tmp_path, CONFIG)
    assert sys.stdin is terminal
    (run,) = wandb.runs
    given = run.arguments
    assert (given["project"], given["name"], given["config"]) == ("mlx_trm", tmp_path.name, CONFIG)
    assert given["dir"] == str(tmp_path) and given["resume"] == "allow"
    assert given["settings"].values["console"] == "off"
    assert 0 < given["settings"].values["init_timeout"] <= 60
    assert 0 < given["settings"].values["finish_timeout"] <= 120
    assert run.metrics == [("step", ""), ("*", "step")]
    reporter.report(TRAIN)
    reporter.report(EVAL)
    reporter.close()
    assert run.logged == [{"step": 10, **scalars(TRAIN)}, {"step": 20, **scalars(EVAL)}]
    assert run.finished and wandb.calls == ["online"]
    assert [r.getMessage() for r in caplog.records] == [
        "Weights & Biases: https://wandb.example/runs/1"
    ]


def test_wandb_of_a_resumed_run(wandb: FakeWandb, tmp_path: Path) -> None:
    """It goes on under the identity that lies in the run folder; another run has another one."""
    wandb.logged_in = True
    (tmp_path / "other").mkdir()
    for run in (tmp_path, tmp_path, tmp_path / "other"):
        make_reporters(["wandb"], run, CONFIG)
    first, again, other = [run.arguments["id"] for run in wandb.runs]
    assert first == again != other
    assert (tmp_path / "wandb_id.txt").read_text() == first + "\n"


@pytest.mark.parametrize("mode", ["", "online"])
def test_wandb_without_a_login(
    mode: str,
    wandb: FakeWandb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No question, whoever sits there: offline, with one line that says how to send it."""
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("the user is asked"))
    terminal = sys.stdin
    (reporter,) = make_reporters(["wandb"], tmp_path, CONFIG)
    assert sys.stdin is terminal
    assert wandb.calls == ["online", "teardown", "offline"]
    reporter.report(TRAIN)
    assert wandb.runs[0].logged == [{"step": 10, **scalars(TRAIN)}]
    assert [r.getMessage() for r in caplog.records] == [
        "Weights & Biases: offline (No API key configured. Use `wandb login`); to send the run "
        f"later: wandb login, then wandb sync {tmp_path}/wandb/offline-run-1"
    ]


@pytest.mark.parametrize("mode", ["offline", "dryrun", "disabled"])
def test_wandb_mode_is_respected(
    mode: str,
    wandb: FakeWandb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The package reads the variable itself; nothing is tried online."""
    monkeypatch.setenv("WANDB_MODE", mode)
    with caplog.at_level(logging.INFO, "mlx_trm"):
        make_reporters(["wandb"], tmp_path, CONFIG)
    assert wandb.calls == [mode] and "mode" not in wandb.runs[0].arguments
    assert ["wandb sync" in r.getMessage() for r in caplog.records] == [True] * (mode != "disabled")


def test_wandb_that_waits_without_end(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version without ``finish_timeout`` is not given one: it would refuse to start."""
    monkeypatch.delitem(FakeWandb.Settings.__annotations__, "finish_timeout")
    make_reporters(["wandb"], tmp_path, CONFIG)
    assert "finish_timeout" not in wandb.runs[0].arguments["settings"].values


@pytest.mark.parametrize("text", ["", "a/b", "x" * 65, "\xff"])
def test_wandb_identity_that_is_none(text: str, wandb: FakeWandb, tmp_path: Path) -> None:
    """A file that holds something else is named, and left as it is."""
    (tmp_path / "wandb_id.txt").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="wandb_id.txt: holds no identity of a run; remove it"):
        make_reporters(["wandb"], tmp_path, CONFIG)
    assert not wandb.runs
    assert (tmp_path / "wandb_id.txt").read_text(encoding="latin-1") == text
