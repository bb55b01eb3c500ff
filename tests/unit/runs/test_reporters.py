"""Reporters: the same lines to TensorBoard and Weights & Biases, and no run stops for them."""

import io
import json
import logging
import os
import resource
import struct
import sys
import types
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple
from unittest import mock

import pytest
from marks import experiment
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from mlx_trm.config import load_config
from mlx_trm.config.registry import Names
from mlx_trm.errors import ConfigError
from mlx_trm.runs import reporters as reporting
from mlx_trm.runs.reporters import Reporter, make_reporters, register_reporter, scalars
from mlx_trm.training.trainer import Trainer

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
        super().__init__(run, config)
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
    monkeypatch.setattr(reporting, "REPORTERS", Names("reporter"))
    register_reporter("tensorboard", ("json", "dumps"))(Recorder)
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


def test_none() -> None:
    """No names, no reporters, nothing imported."""
    assert not make_reporters([], Path("nowhere"), {})


@pytest.mark.parametrize("name, package", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
@pytest.mark.parametrize("how", ["missing", "broken", "empty folder"])
def test_missing_packages(
    name: str, package: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that says what to install; nothing is written, by the other reporter either."""
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    if how == "broken":
        place = tmp_path / "path" / package
        place.mkdir(parents=True)
        (place / "__init__.py").write_text("raise AttributeError('no\\nfloat_')\n")
        monkeypatch.syspath_prepend(str(place.parent))
    else:
        # An empty folder of that name in the working folder is imported as an empty module.
        empty = None if how == "missing" else types.ModuleType(package)
        monkeypatch.setitem(sys.modules, package, empty)
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ConfigError) as caught:
        make_reporters([name], run, CONFIG)
    message = str(caught.value)
    assert message.startswith(f"train.report_to: {name} needs a package that cannot be imported (")
    assert "no float_" in message if how == "broken" else package in message
    assert message.endswith(f'); pip install --upgrade "mlx_trm[{name}]"')
    assert "\n" not in message and not list(run.iterdir())


def test_a_reporter_of_a_plugin_gets_the_lines_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/extending.md says: a file that registers it, and two settings."""
    monkeypatch.setattr(reporting, "REPORTERS", Names("reporter"))
    plugin = tmp_path / "printing_plugin.py"
    plugin.write_text(
        "import mlx_trm\n\n"
        "@mlx_trm.register_reporter('printer')\n"
        "class Printer(mlx_trm.Reporter):\n"
        "    def __init__(self, run, config):\n"
        "        self.file = open(run / 'printed.txt', 'w')\n"
        "    def report(self, line):\n"
        "        print(line['kind'], line['step'], file=self.file, flush=True)\n"
    )
    settings = [f"plugins=[{plugin}]", "train.report_to=[printer]", "train.max_steps=3"]
    Trainer(load_config("sudoku_tiny.yaml", [f"run_dir={tmp_path}/run", *settings])).fit()
    printed = (tmp_path / "run" / "printed.txt").read_text().splitlines()
    logged = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert printed == [f"{line['kind']} {line['step']}" for line in map(json.loads, logged)]


def test_a_name_belongs_to_one_reporter() -> None:
    """A class of another place is refused; the same one defined again is not."""
    with pytest.raises(ValueError, match="reporter 'tensorboard' is mlx_trm.*TensorBoard already"):
        register_reporter("tensorboard")(Recorder)
    cls = reporting.TensorBoard
    assert register_reporter("tensorboard", reporting.REPORTERS.get("tensorboard").needs)(cls)


def test_an_unknown_reporter_is_one_line(tmp_path: Path) -> None:
    """With the closest name, before anything is written."""
    with pytest.raises(ConfigError) as caught:
        make_reporters(["tensorbord"], tmp_path, CONFIG)
    message = str(caught.value)
    assert "tensorbord" in message and "did you mean 'tensorboard'?" in message
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_started_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line; reporters that have been started are closed."""

    monkeypatch.setattr(reporting, "REPORTERS", Names("reporter"))
    register_reporter("tensorboard")(Recorder)

    @register_reporter("wandb")
    class Broken(Reporter):  # pylint: disable=unused-variable
        """Cannot be started."""

        def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
            super().__init__(run, config)
            raise OSError(20, "Not a directory", str(run / "wandb"))

    Recorder.made.clear()
    with pytest.raises(ConfigError, match="train.report_to: wandb cannot be started .*directory"):
        make_reporters(["tensorboard", "wandb"], tmp_path, CONFIG)
    assert [made.closed for made in Recorder.made] == [1]


# TensorBoard ------------------------------------------------------------------------------------


def read_events(run: Path) -> Tuple[Dict[str, List[Tuple[int, float]]], List[Any]]:
    """Read a run's event files as TensorBoard does: (step, value) by tag, and the other events.

    A restart at a step takes back what has been said of that step and of later ones.
    """
    points: Dict[str, List[Tuple[int, float]]] = {}
    others = []
    for path in sorted((run / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:  # the length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                for tag, held in points.items():
                    points[tag] = [point for point in held if point[0] < event.step]
            if event.file_version or any(v.metadata.ByteSize() for v in event.summary.value):
                others.append(event)
                continue
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points, others


def test_tensorboard_reads_what_was_reported(tmp_path: Path) -> None:
    """Tags, steps and values, before anything is closed; the configuration as hyperparameters."""
    (reporter,) = make_reporters(["tensorboard"], tmp_path, {**CONFIG, "seed": None})
    for line in (TRAIN, {**TRAIN, "step": 20, "lm_loss": float("nan"), "lr": 3e-4}, EVAL):
        reporter.report(line)
    points, (version, parameters) = read_events(tmp_path)
    assert points == {
        "train/lm_loss": [(10, 2.0)],
        "train/count": [(10, 5.0), (20, 5.0)],
        "train/lr": [(10, pytest.approx(4e-4)), (20, pytest.approx(3e-4))],
        "eval/all/exact_accuracy": [(20, 0.25)],
        "eval/all/ARC/pass@2": [(20, 0.5)],
    }
    assert version.file_version == "brain.Event:2" and version.wall_time > 1e9
    (value,) = parameters.summary.value
    held = HParamsPluginData.FromString(
        value.metadata.plugin_data.content
    ).session_start_info.hparams
    assert held["train.lr"].number_value == 1e-3 and held["train.ema"].bool_value is True
    assert held["task.name"].string_value == "sudoku" and held["seed"].string_value == "null"
    assert held["task.symmetries"].string_value == '["digits"]'
    assert not {"torch", "tensorflow"} & set(sys.modules)
    reporter.close()


def test_tensorboard_itself_reads_the_files(tmp_path: Path) -> None:
    """The same steps as read_events finds, and the hyperparameters; where it is installed."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first in (10, 30):
        report(
            tmp_path, *({**TRAIN, "step": step, "lm_loss": first} for step in range(first, 50, 10))
        )
    seen = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    found = [(event.step, event.value) for event in seen.Scalars("train/lm_loss")]
    assert found == read_events(tmp_path)[0]["train/lm_loss"]
    assert found == [(10, 10.0), (20, 10.0), (30, 30.0), (40, 30.0)]
    assert (
        "hparams" in seen.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name
    )


def report(run: Path, *lines: Mapping[str, Any]) -> None:
    """Report lines to TensorBoard, as a process does from its start to its end."""
    (reporter,) = make_reporters(["tensorboard"], run, CONFIG)
    for line in lines:
        reporter.report(line)
    reporter.close()


def test_tensorboard_of_a_resumed_run(tmp_path: Path) -> None:
    """Steps that are done again replace those of the first time, however soon they come."""
    lines = [{"kind": "train", "step": step, "lm_loss": 1.0} for step in (10, 20, 30, 40)]
    report(tmp_path, *lines)
    first = {path: path.read_bytes() for path in (tmp_path / "tensorboard").iterdir()}
    report(tmp_path, *({**line, "lm_loss": 2.0} for line in lines[2:]))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert all(path.read_bytes() == content for path, content in first.items())
    expected = [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    assert read_events(tmp_path)[0]["train/lm_loss"] == expected


def test_tensorboard_of_a_run_resumed_before_its_evaluation(tmp_path: Path) -> None:
    """The training of that step has been reported, and stays."""
    report(tmp_path, TRAIN, {**TRAIN, "step": 20})
    report(tmp_path, EVAL, {**TRAIN, "step": 30})
    points, _ = read_events(tmp_path)
    assert points["train/lm_loss"] == [(10, 2.0), (20, 2.0), (30, 2.0)]
    assert points["eval/all/exact_accuracy"] == [(20, 0.25)]


def test_tensorboard_folder_in_the_way(tmp_path: Path) -> None:
    """A file of that name is an error before training."""
    (tmp_path / "tensorboard").write_text("mine")
    with pytest.raises(ConfigError, match="tensorboard cannot be started .*File exists"):
        make_reporters(["tensorboard"], tmp_path, CONFIG)
    assert (tmp_path / "tensorboard").read_text() == "mine"


def test_tensorboard_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The line that does not fit is noticed; one warning, and training goes on at once."""
    (reporter,) = make_reporters(["tensorboard"], tmp_path, CONFIG)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        for _ in range(60):  # 100 bytes each
            reporter.report(TRAIN)
        reporter.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [r.getMessage() for r in caplog.records] == [
        "tensorboard failed ([Errno 27] File too large); training goes on without it"
    ]


def test_a_run_reports_what_its_log_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash and from the checkpoint before it: each line of metrics.jsonl, once."""
    monkeypatch.chdir(tmp_path)
    changes: Dict[str, Any] = {"train__log_interval": 7, "train__report_to": ["tensorboard"]}

    def crash(step: int) -> None:
        if step == 75:
            raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError):
        Trainer(experiment(run_dir="run", eval__interval=10, **changes)).fit(on_tick=crash)
    before = read_events(Path("run"))[0]["train/lm_loss"]
    trainer = Trainer.resume("run")
    assert trainer.step < before[-1][0]
    trainer.fit()
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    points, _ = read_events(Path("run"))
    for tag in ("train/lm_loss", "eval/all/exact_accuracy"):
        kind, name = tag.split("/")[0], tag.split("/")[-1]
        expected = [(x["step"], pytest.approx(x[name])) for x in lines if x["kind"] == kind]
        assert points[tag] == expected and len(expected) > 2


# Weights & Biases -------------------------------------------------------------------------------


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
        self.runs: List[mock.Mock] = []

    def init(self, **arguments: Any) -> mock.Mock:
        """Start, ask for a login in a terminal, or say that there is none."""
        mode = arguments.get("mode") or os.environ.get("WANDB_MODE") or "online"
        self.calls.append(mode)
        if mode == "online" and not self.logged_in:
            assert not sys.stdin.isatty(), "the user is asked"
            raise RuntimeError("No API key configured.\nUse `wandb login`")
        folder = os.path.join(arguments["dir"], "wandb", "offline-run-1", "files")
        url = "https://wandb.example/runs/1" if mode == "online" else None
        run = mock.Mock(arguments=arguments, url=url, dir=folder, offline=mode != "online")
        self.runs.append(run)
        return run

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
    assert run.define_metric.mock_calls == [mock.call("step"), mock.call("*", step_metric="step")]
    reporter.report(TRAIN)
    reporter.report(EVAL)
    reporter.close()
    lines = [{"step": 10, **scalars(TRAIN)}, {"step": 20, **scalars(EVAL)}]
    assert run.log.mock_calls == [mock.call(line) for line in lines]
    assert run.finish.mock_calls == [mock.call()] and wandb.calls == ["online"]
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
    terminal = sys.stdin
    (reporter,) = make_reporters(["wandb"], tmp_path, CONFIG)
    assert sys.stdin is terminal
    assert wandb.calls == ["online", "teardown", "offline"]
    reporter.report(TRAIN)
    assert wandb.runs[0].log.mock_calls == [mock.call({"step": 10, **scalars(TRAIN)})]
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
