"""What all commands share: arguments, overrides, messages, the device, errors and exit codes."""

import argparse
import logging
import runpy
import sys
import types
from pathlib import Path
from typing import Any, Dict, List, Optional

import mlx.core as mx
import pytest
from child_processes import LIMIT, run_python, started
from tqdm import tqdm

import mlx_trm
from mlx_trm.cli import commands, running
from mlx_trm.cli.arguments import add_config, add_overrides, read_config
from mlx_trm.cli.commands import COMMANDS, start_command
from mlx_trm.config.loading import packaged_configs
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import LESS_MEMORY, CheckpointError, ConfigError, DataError
from mlx_trm.system.report import gpu_available


def run_line(
    line: str,
    needs: str = "overrides",
    error: Optional[BaseException] = None,
    code: Optional[int] = None,
    work: Any = None,
) -> Any:
    """Run a throw-away command; return its exit code and what its function was given."""
    seen: Dict[str, Any] = {}

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        if needs != "config":
            parser.add_argument("run", metavar="RUN")
        parser.add_argument("--steps", type=int)
        parser.add_argument("--json")

    def run(args: argparse.Namespace, given: Any = None) -> Optional[int]:
        seen.update(args=args, given=given)
        if work is not None:
            work()
        if error is not None:
            raise error
        return code

    return running.run_command("evaluate", add_arguments, run, line.split(), needs=needs), seen


def only_line(capsys: pytest.CaptureFixture) -> str:
    """Standard error, which has to be exactly one line, with nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n") and err.count("\n") == 1, err
    return str(err[:-1])


# Arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, settings",
    [
        ("a.b=1 c=2 RUN", ["a.b=1", "c=2"]),
        ("RUN a.b=1 --steps 3 c=2", ["a.b=1", "c=2"]),
        ("--steps 3 a.b=1 RUN c=2", ["a.b=1", "c=2"]),
        ("a.b=1 --set c=2 -v RUN --set=d=e=f", ["a.b=1", "c=2", "d=e=f"]),
        ("-q a=1 RUN", ["a=1"]),
        ("RUN", []),
        ("RUN --set a", ["a"]),
        ("RUN bare", ["bare"]),
        ("RUN =1 a= train.batch-size=2", ["=1", "a=", "train.batch-size=2"]),
        ("RUN a=-1", ["a=-1"]),
        ("RUN --json a=b c=1", ["c=1"]),
        ("RUN --json=a=b c=1", ["c=1"]),
        ("--log-file /dev/null a=1 RUN --device cpu b=2", ["a=1", "b=2"]),
    ],
)
def test_settings_stand_anywhere(line: str, settings: List[str]) -> None:
    """Before, between and after other words, but never in place of an option's value."""
    code, seen = run_line(line)
    assert code == 0
    assert sorted(seen["given"]) == sorted(settings)
    assert seen["args"].run == "RUN"
    assert seen["args"].steps == (3 if "--steps" in line else None)
    assert seen["args"].json == ("a=b" if "--json" in line else None)


def test_settings_keep_their_order() -> None:
    """The last one for a key counts, so the order matters, whatever the form."""
    _, seen = run_line("a=1 --set a=2 RUN a=3 --set=a=4")
    assert seen["given"] == ["a=1", "a=2", "a=3", "a=4"]


def test_a_folder_with_an_equals_sign() -> None:
    """A path is no setting; without settings nothing is taken for one."""
    assert run_line("runs/lr=3")[1]["args"].run == "runs/lr=3"
    assert run_line("./lr=3")[1]["args"].run == "./lr=3"
    assert run_line("lr=3", needs="nothing")[1]["args"].run == "lr=3"


@pytest.mark.parametrize(
    "line, needs, message",
    [
        ("", "nothing", "the following arguments are required: RUN"),
        ("", "overrides", "the following arguments are required: RUN"),
        ("RUN other", "nothing", "unexpected 'other'"),
        ("RUN a=1", "nothing", "unexpected 'a=1'"),
        ("RUN --stesp 3", "nothing", "unknown option '--stesp'; did you mean '--steps'?"),
        ("RUN --stesp=3", "nothing", "unknown option '--stesp=3'; did you mean '--steps'?"),
        ("RUN --step 3", "overrides", "unknown option '--step'; did you mean '--steps'?"),
        ("RUN -z", "nothing", "unknown option '-z'"),
        ("RUN --steps x", "nothing", "argument --steps: invalid int value: 'x'"),
        ("RUN --steps", "nothing", "argument --steps: expected one argument"),
        ("RUN --set", "overrides", "argument --set: expected one argument"),
        ("RUN --device tpu", "nothing", "argument --device: invalid choice: 'tpu'"),
        ("RUN -q -v", "nothing", "argument -v/--verbose: not allowed with argument -q/--quiet"),
    ],
)
def test_wrong_lines(line: str, needs: str, message: str, capsys: pytest.CaptureFixture) -> None:
    """Exit code 2 and one line, without the usage."""
    code, seen = run_line(line, needs)
    assert (code, seen) == (2, {})
    told = only_line(capsys)
    assert told.startswith(message)
    assert told.endswith(" (see python -m mlx_trm.evaluate --help)")


@pytest.mark.parametrize(
    "line, says",
    [
        ("--lr 1e-3", "write train.lr=1e-3"),
        ("--lr=1e-3", "write train.lr=1e-3"),
        ("-lr 1e-3", "write train.lr=1e-3"),
        ("--train.lr 1e-3", "write train.lr=1e-3"),
        ("--batch-size -1", "write train.batch_size=-1 or eval.batch_size=-1"),
        ("--batchsize 8", "write train.batch_size=8 or eval.batch_size=8"),
        ("--epochs", "write train.epochs=VALUE"),
        ("--epochs --quiet", "write train.epochs=VALUE"),
        ("--num_aug=3", "write task.num_aug=3"),
        ("--global_batch_size 4", "write train.batch_size=4"),
        ("--symmetries [rows]", "write 'task.symmetries=[rows]'"),
        ("--seed 3", "write seed=3 or task.seed=3"),
        ("--model.hiden-size 3", "write model.hidden_size=3"),
        ("--stesp 3", "did you mean '--steps'?"),
        ("--zzz 3", "'--zzz' (see"),
    ],
)
def test_a_setting_with_dashes_is_answered_with_how_it_is_written(
    line: str, says: str, capsys: pytest.CaptureFixture
) -> None:
    """Any name of a setting, with its section or without, as an option of other programs."""
    assert run_line(f"RUN {line}", "overrides") == (2, {})
    assert says in only_line(capsys)


@pytest.mark.parametrize(
    "called, usage",
    [
        ("/somewhere/bin/mlx-trm", "mlx-trm train"),
        ("mlx-trm.exe", "mlx-trm train"),
        ("/lib/mlx_trm/__main__.py", "python -m mlx_trm train"),
        ("/lib/mlx_trm/train.py", "python -m mlx_trm.train"),
        ("/lib/pytest/__main__.py", "python -m mlx_trm.train"),
    ],
)
def test_help_has_the_name_it_was_called_by(
    called: str, usage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A console script, the package, or the module; in errors and the list of commands, too."""
    monkeypatch.setattr(sys, "argv", [called])
    assert start_command(["train", "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {usage} [-h]")
    assert start_command(["train", "--nonsense"]) == 2
    assert capsys.readouterr().err.endswith(f"(see {usage} --help)\n")
    assert start_command([]) == 0
    assert capsys.readouterr().out.startswith("usage: " + usage.replace(".", " ")[:-6])


def test_help_lists_what_is_shared(capsys: pytest.CaptureFixture) -> None:
    """``--help`` goes to standard output and ends well."""
    assert run_line("--help") == (0, {})
    out, err = capsys.readouterr()
    assert err == ""
    for word in ("-v", "-q", "--log-file FILE", "--device {cpu,gpu}", "--set", "KEY=VALUE"):
        assert word in out
    assert "Score a trained model on its task's puzzles." in out and "Exit code: 0 done" in out


# Sub-commands -----------------------------------------------------------------------------------


def run_data(line: str) -> Any:
    """Run a command with sub-commands, of which ``build`` takes a configuration."""
    seen: Dict[str, Any] = {}

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        add_config(actions.add_parser("build"))
        show = actions.add_parser("show")
        show.add_argument("file")

    def run(args: argparse.Namespace) -> None:
        seen.update(vars(args))
        if args.action == "build":
            seen["config"] = read_config(args)

    return running.run_command("data", add_arguments, run, line.split()), seen


@pytest.mark.parametrize(
    "line",
    [
        "build -v --config sudoku_tiny.yaml seed=7",
        "-v build seed=7 --config sudoku_tiny.yaml",
        "seed=7 build --config=sudoku_tiny.yaml -v",
        "build --config sudoku_tiny.yaml --set seed=7 --verbose",
    ],
)
def test_shared_options_before_and_after_a_sub_command(line: str) -> None:
    """Sub-commands take them too, and do not forget those that came before."""
    code, seen = run_data(line)
    assert code == 0
    assert (seen["verbose"], seen["quiet"], seen["overrides"]) == (1, False, ["seed=7"])
    assert seen["config"].seed == 7 and seen["config"].train.batch_size == 64


def test_settings_only_where_they_are_taken(capsys: pytest.CaptureFixture) -> None:
    """One sub-command takes settings, another does not."""
    assert run_data("show file a=1") == (2, {})
    told = only_line(capsys)
    assert told == "unexpected 'a=1' (see python -m mlx_trm.data --help)"
    assert run_data("show -q file")[1]["quiet"] is True


# The configuration ------------------------------------------------------------------------------


def test_needs_config(capsys: pytest.CaptureFixture) -> None:
    """The resolved configuration is handed over; a missing name lists the packaged ones."""
    code, seen = run_line("train.lr=3e-4 --config sudoku_tiny.yaml seed=5", needs="config")
    config = seen["given"]
    assert code == 0 and isinstance(config, ExperimentConfig)
    assert (config.train.lr, config.seed, config.task.name) == (3e-4, 5, "sudoku")
    known = ", ".join(packaged_configs())
    assert run_line("seed=5", needs="config") == (2, {})
    assert only_line(capsys) == f"--config FILE is missing (packaged: {known})"
    assert run_line("sudoku.yaml", needs="config") == (2, {})
    assert only_line(capsys).startswith(
        "--config FILE is missing; did you mean --config sudoku.yaml? (packaged: "
    )


def test_problems_of_the_configuration(capsys: pytest.CaptureFixture) -> None:
    """One line for one problem; a heading and one line each for several."""
    assert run_line("--config sudoku.yaml train.lr", needs="config") == (2, {})
    expected = "sudoku.yaml (overrides): 'train.lr': '=' is missing; write train.lr=VALUE"
    assert only_line(capsys) == expected
    line = "--config sudoku.yaml train.batchsize=3 train.loss=stable task.name=sudoko"
    assert run_line(line, needs="config") == (2, {})
    assert capsys.readouterr().err.splitlines() == [
        "sudoku.yaml (overrides) has 3 problems:",
        "  unknown key 'train.batchsize'; did you mean 'train.batch_size'?",
        "  train.loss: 'stable' is not one of 'stablemax', 'softmax'; did you mean 'stablemax'?",
        "  task.name: unknown task 'sudoko'; did you mean 'sudoku'? (known: "
        + ", ".join(mlx_trm.config.registry.TASKS.names())
        + ")",
    ]


# Exit codes and errors --------------------------------------------------------------------------


@pytest.mark.parametrize("given, code", [(None, 0), (0, 0), (1, 1)])
def test_exit_code_of_the_command(given: Optional[int], code: int) -> None:
    """None is 0; a command says 1 where the answer is no."""
    assert run_line("RUN", code=given)[0] == code


@pytest.mark.parametrize(
    "error, code, message",
    [
        (ConfigError("x: bad"), 2, "x: bad"),
        (DataError("f.csv, line 3: bad"), 2, "f.csv, line 3: bad"),
        (CheckpointError("run: broken"), 2, "run: broken"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "f.csv"), 2, "f.csv: Permission denied"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (
            MemoryError("too much"),
            2,
            f"out of memory (MemoryError: too much); {LESS_MEMORY}",
        ),
        (
            RuntimeError("[malloc] Unable to allocate\n5 bytes"),
            2,
            "out of memory (RuntimeError: [malloc] Unable to allocate 5 bytes); " + LESS_MEMORY,
        ),
        (
            ZeroDivisionError("by\nzero"),
            1,
            "unexpected ZeroDivisionError: by zero (a bug; -vv shows the traceback)",
        ),
    ],
)
def test_errors(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture
) -> None:
    """One line on standard error, and the traceback only with -vv."""
    for line in ("RUN", "RUN -q"):
        assert run_line(line, error=error)[0] == code
        assert only_line(capsys) == message
    assert run_line("RUN -v", error=error)[0] == code
    assert "Traceback" not in capsys.readouterr().err
    assert run_line("RUN -vv", error=error)[0] == code
    err = capsys.readouterr().err
    assert message in err and "Traceback (most recent call last)" in err
    assert f"{type(error).__name__}" in err.splitlines()[-1] or "\n" in str(error)


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """``COMMAND | head`` ends quietly."""
    script = tmp_path / "command.py"
    script.write_text(
        "import sys\n"
        "from mlx_trm.cli.running import run_command as main\n"
        "def run(args):\n"
        "    for number in range(200000):\n"
        "        print(number)\n"
        "sys.exit(main('data', lambda parser: None, run))\n"
    )
    with started([sys.executable, script]) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(LIMIT) == 141


# Messages ---------------------------------------------------------------------------------------


def say_something() -> None:
    """Log at three levels, as the library does."""
    logger = logging.getLogger("mlx_trm.somewhere")
    logger.debug("detail %d", 1)
    logger.info("news")
    logger.warning("beware")


@pytest.mark.parametrize(
    "options, lines",
    [
        ("-q", ["beware"]),
        ("", ["news", "beware"]),
        ("-v", ["python -m mlx_trm.evaluate RUN -v", "detail 1", "news", "beware"]),
    ],
)
def test_levels(options: str, lines: List[str], capsys: pytest.CaptureFixture) -> None:
    """-q says less and -v more; bare messages on standard error."""
    assert run_line(f"RUN {options}", work=say_something)[0] == 0
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", lines)


def test_log_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It gets everything, with times and tracebacks, and is appended to."""
    path = tmp_path / "run.log"
    path.write_text("before\n")
    error = ConfigError("x: bad")
    assert run_line(f"RUN -q --log-file {path}", work=say_something, error=error)[0] == 2
    assert capsys.readouterr().err == "beware\nx: bad\n"
    text = path.read_text()
    assert text.startswith("before\n")
    for expected in (" DEBUG mlx_trm.somewhere: detail 1\n", " INFO mlx_trm.somewhere: news\n"):
        assert expected in text
    assert " ERROR mlx_trm: x: bad\nTraceback (most recent call last)" in text


def test_log_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One line, before anything is done."""
    path = tmp_path / "missing" / "run.log"
    assert run_line(f"RUN --log-file {path}") == (2, {})
    assert only_line(capsys) == (
        f"--log-file {path}: cannot be written (No such file or directory); name another file"
    )
    assert run_line(f"RUN --log-file {tmp_path}") == (2, {})
    assert only_line(capsys).startswith(
        f"--log-file {tmp_path}: cannot be written (Is a directory)"
    )


def test_logging_is_left_as_it_was(tmp_path: Path) -> None:
    """No handler and no level stays behind, whatever happened."""
    logger = logging.getLogger("mlx_trm")
    before = (list(logger.handlers), logger.level)
    run_line(f"RUN -vv --log-file {tmp_path / 'a.log'}", error=ValueError("x"))
    run_line(f"RUN --log-file {tmp_path}")
    assert (list(logger.handlers), logger.level) == before


def test_messages_do_not_break_a_progress_bar(capsys: pytest.CaptureFixture) -> None:
    """They are written above a tqdm bar, which is drawn again."""

    def work() -> None:
        with tqdm(total=3, file=sys.stderr, mininterval=0) as bar:
            bar.update(1)
            say_something()

    run_line("RUN -q", work=work)
    err = capsys.readouterr().err
    assert "\rbeware\n" in err.replace(" ", "")
    assert "1/3" in err.split("beware")[1]


# The device -------------------------------------------------------------------------------------


def test_device_holds_during_the_command_only() -> None:
    """``--device cpu`` is MLX's default device inside, and what it was is restored."""
    before = mx.default_device()
    inside: List[Any] = []
    run_line("RUN --device cpu", work=lambda: inside.append(mx.default_device()))
    assert [device.type for device in inside] == [mx.DeviceType.cpu]
    assert mx.default_device() == before


@pytest.mark.skipif(gpu_available(), reason="this machine has a GPU")
def test_gpu_asked_for_where_there_is_none(capsys: pytest.CaptureFixture) -> None:
    """One line that says what to do, and nothing is started."""
    assert run_line("RUN --device gpu") == (2, {})
    told = only_line(capsys)
    assert told == "--device gpu: MLX finds no GPU here; use --device cpu, or leave --device out"


# Listing and starting ---------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_commands_are_listed(argv: List[str], capsys: pytest.CaptureFixture) -> None:
    """Each with what it does."""
    assert start_command(argv) == 0
    out = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert f"  {name:8}  {summary}\n" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_listed_commands_exist(name: str, capsys: pytest.CaptureFixture) -> None:
    """Each is a module that starts its main function, which understands --help."""
    with pytest.raises(SystemExit) as ended:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, "--help"])
            runpy.run_module(f"mlx_trm.{name}", run_name="__main__")
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert out.startswith(f"usage: python -m mlx_trm.{name} ")


def test_a_command_is_started_with_the_rest_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is ours."""
    seen: List[List[str]] = []
    module: Any = types.ModuleType("mlx_trm.later")
    module.main = lambda argv: seen.append(argv) or 1
    monkeypatch.setitem(sys.modules, "mlx_trm.later", module)
    monkeypatch.setitem(commands.COMMANDS, "later", "comes later")
    assert start_command(["later", "--x", "later"]) == 1
    assert seen == [["--x", "later"]]


def test_unknown_command(capsys: pytest.CaptureFixture) -> None:
    """One line with the closest one."""
    assert start_command(["trian"]) == 2
    assert only_line(capsys).startswith(
        "python -m mlx_trm: unknown command 'trian'; did you mean 'train'? (known: train, "
    )


def test_python_m() -> None:
    """``python -m mlx_trm`` lists, tells its version, and starts commands."""
    version = run_python("-m", "mlx_trm", "--version")
    assert version.stdout == f"mlx_trm {mlx_trm.__version__}\n"
    assert "parity" in run_python("-m", "mlx_trm").stdout
    done = run_python("-m", "mlx_trm", "train", "--config", "nowhere.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nowhere.yaml: there is no such file")
    assert done.stderr.count("\n") == 1


def test_overrides_may_be_declared_by_themselves() -> None:
    """``add_overrides`` is what ``needs`` uses; it works for one's own parser too."""
    seen: List[Any] = []
    code = running.run_command(
        "data", add_overrides, lambda args: seen.append(args.overrides), ["a=1", "b"]
    )
    assert code == 0 and sorted(seen[0]) == ["a=1", "b"]
