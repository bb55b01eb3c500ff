"""How every command runs: messages, the device, errors, exit codes.

Exit codes: 0 done; 1 the answer is no (a parity miss, say), or a bug; 2 the user can mend it; 130
interrupted. Results go to standard output, everything else to standard error.
"""

import argparse
import logging
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from mlx_trm.cli.arguments import (
    Parser,
    add_config,
    add_overrides,
    add_shared,
    parse_line,
    read_config,
)
from mlx_trm.cli.commands import COMMANDS, INTERRUPTED, called_as, close_output, prepare_streams
from mlx_trm.config.plugins import loaded_plugins, locate_in_plugin
from mlx_trm.errors import (
    MOST_PROBLEMS,
    ConfigError,
    TRMError,
    describe_device_problem,
    printable,
    shown,
)
from mlx_trm.system.output import STANDARD_OUTPUT, Output, shown_output, unwritten_output

DONE, NO, USER = 0, 1, 2
LOGGER = logging.getLogger("mlx_trm")


@dataclass(frozen=True)
class Main:
    """The ``main`` of a command module.

    Attributes:
        command: its name, one of :data:`mlx_trm.cli.commands.COMMANDS`.
        add_arguments: declares what only this command takes.
        run: does the work; see :func:`run_command`.
        needs: see :func:`run_command`.
    """

    command: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[..., Optional[int]]
    needs: str = "nothing"

    def __call__(self, argv: Optional[List[str]] = None) -> int:
        """Run the command.

        Args:
            argv: the words after its name; default those of the process.

        Returns:
            The exit code: 0 done, 1 the answer is no or a bug, 2 something the user can mend.
        """
        return run_command(self.command, self.add_arguments, self.run, argv, self.needs)

    def parser(self) -> Parser:
        """Make the command's parser."""
        return make_parser(self.command, self.add_arguments, self.needs)


def make_main(
    command: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[..., Optional[int]],
    needs: str = "nothing",
) -> Main:
    """Make the ``main`` of a command module; the arguments are the attributes of :class:`Main`."""
    return Main(command, add_arguments, run, needs)


def make_parser(
    command: str, add_arguments: Callable[[argparse.ArgumentParser], None], needs: str
) -> Parser:
    """Make the parser of a command; arguments as of :func:`run_command`."""
    summary = COMMANDS.get(command, command)
    parser = Parser(
        prog=called_as(command),
        description=summary[:1].upper() + summary[1:] + ".",
        epilog="Exit code: 0 done, 1 the answer is no or a bug, 2 something you can mend. No file "
        "runs code but plugins that you name or allow (docs/security.md).",
    )
    add_arguments(parser)
    if needs == "config":
        add_config(parser)
    elif needs == "overrides":
        add_overrides(parser)
    add_shared(parser)
    return parser


def run_command(
    command: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[..., Optional[int]],
    argv: Optional[List[str]] = None,
    needs: str = "nothing",
) -> int:
    """Run a command: parse its line, set up messages and device, do it, report errors.

    Args:
        command: its name, one of :data:`mlx_trm.cli.commands.COMMANDS`.
        add_arguments: declares what only this command takes.
        run: does the work and returns the exit code, None for 0. It is called with the parsed
            arguments; they have ``verbose`` (0, 1, 2), ``quiet`` and ``overrides``.
        argv: the words after the command's name; default those of the process.
        needs: ``config``: add ``--config`` and settings, and call ``run(args, config)``;
            ``overrides``: add settings, and call ``run(args, overrides)``; or ``nothing``. A
            command with sub-commands declares settings in them by :func:`add_overrides` or
            :func:`add_config`.

    Returns:
        The exit code.
    """
    parser = make_parser(command, add_arguments, needs)
    words = sys.argv[1:] if argv is None else argv
    prepare_streams()
    # A run of days does not end because whoever read its output has left.
    lasting = command == "train"
    with shown_output(lasting) as output:
        try:
            args = parse_line(parser, words)
        except SystemExit as stop:
            return _end_help(int(stop.code or 0), output)
        with console_messages(args.verbose, args.quiet):
            try:
                with file_messages(args.log_file), default_device(args.device):
                    LOGGER.debug("%s", " ".join([parser.prog, *words]))
                    code = _run(args, run, needs)
                    if lasting and output.failure is not None:
                        reason = output.failure.strerror or output.failure
                        LOGGER.warning("standard output: %s; the run went on without it", reason)
                    return code
            except ConfigError as error:  # of the log file or the device
                return report_error(error)


def _end_help(code: int, output: Output) -> int:
    """Give the exit code of a line that ended while it was parsed, by ``--help`` say.

    Args:
        code: the parser's, which does not look at whether its text was written.
        output: standard output.
    """
    with suppress(OSError):
        output.flush()
    failure = output.failure
    if failure is None or isinstance(failure, BrokenPipeError):
        return code
    sys.stderr.write(unwritten_output(failure) + "\n")
    return USER


def _run(args: argparse.Namespace, run: Callable[..., Optional[int]], needs: str) -> int:
    """Call a command's function and turn what it raises into an exit code."""
    try:
        if needs == "config":
            # A resumed run has a configuration of its own.
            own = args.config is None and getattr(args, "resume", None) not in (None, "auto")
            code = run(args, None if own else read_config(args))
        elif needs == "overrides":
            code = run(args, args.overrides)
        else:
            code = run(args)
        sys.stdout.flush()
        return code or DONE
    except BrokenPipeError:
        return close_output()
    except (Exception, KeyboardInterrupt) as error:  # pylint: disable=broad-exception-caught
        return report_error(error)


def report_error(error: BaseException) -> int:
    """Tell the user about an error in one line, with its traceback at ``-vv``.

    Returns:
        The exit code it stands for.
    """
    if isinstance(error, TRMError):
        LOGGER.error("%s", error, exc_info=error)
        return USER
    if isinstance(error, KeyboardInterrupt):
        LOGGER.error("interrupted", exc_info=error)
        return INTERRUPTED
    advice = describe_device_problem(error)
    if advice:
        LOGGER.error("%s", advice, exc_info=error)
        return USER
    text = " ".join([type(error).__name__ + ":", *str(error).split()])
    where = locate_in_plugin(error)
    if where:
        LOGGER.error("a plugin failed: %s%s (-vv shows the traceback)", text, where, exc_info=error)
        return USER
    if isinstance(error, OSError) and error.filename == STANDARD_OUTPUT:
        LOGGER.error("%s", unwritten_output(error), exc_info=error)
        return USER
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        LOGGER.error("%s%s", where, error.strerror, exc_info=error)
        return USER
    plugins = ", ".join(shown(name) for name in loaded_plugins())
    bug = f"a bug, of mlx_trm or of what a plugin gave it: {plugins}" if plugins else "a bug"
    LOGGER.error("unexpected %s (%s; -vv shows the traceback)", text, bug, exc_info=error)
    return NO


class _Console(logging.StreamHandler):  # type: ignore[type-arg]  # plain on Python 3.9
    """Writes bare messages to standard error, above a progress bar where there is one."""

    def __init__(self, tracebacks: bool) -> None:
        super().__init__(sys.stderr)
        self.tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record) if self.tracebacks else record.getMessage())

    def emit(self, record: logging.LogRecord) -> None:
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
        if bars is None:
            super().emit(record)
            return
        try:
            bars.write(self.format(record), file=self.stream)
            self.flush()
        except Exception:  # pylint: disable=broad-exception-caught
            self.handleError(record)


class _Bounded(logging.Filter):
    """Lets a place in the code say the same thing so many times; errors always come through.

    A hundred thousand puzzles with the same fault are not a hundred thousand lines.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: Dict[Tuple[str, int], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        if record.levelno >= logging.ERROR or record.levelno < logging.INFO:
            return True
        self._seen[place] = self._seen.get(place, 0) + 1
        if self._seen[place] == MOST_PROBLEMS + 1:
            record.msg, record.args = "(more such messages; --log-file FILE has all of them)", None
        return self._seen[place] <= MOST_PROBLEMS + 1


class _PrintableFormatter(logging.Formatter):
    """Writes records so that whoever looks at the file is shown nothing but text."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _LogFile(logging.FileHandler):
    """Writes messages to a file; where it cannot, it says so once and the command goes on."""

    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._failed:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        self._fail(sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # of what was still to be written
            self._fail(error)

    def _fail(self, error: Optional[BaseException]) -> None:
        if not self._failed:
            self._failed = True
            reason = getattr(error, "strerror", None) or error
            LOGGER.warning(
                "--log-file %s: cannot be written (%s); messages are only shown from here on",
                self.baseFilename,
                reason,
            )


@contextmanager
def console_messages(verbose: int = 0, quiet: bool = False) -> Iterator[None]:
    """Show the package's log messages on standard error, inside a ``with`` block.

    Args:
        verbose: 1 for debug messages, 2 for tracebacks of errors too.
        quiet: only warnings and errors.
    """
    handler = _Console(tracebacks=verbose > 1)
    handler.addFilter(_Bounded())
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    with _handling(handler, level):
        yield


@contextmanager
def file_messages(path: Optional[str]) -> Iterator[None]:
    """Append all log messages, with times and tracebacks, to a file, inside a ``with`` block.

    Raises:
        ConfigError: if it cannot be opened.
    """
    if path is None:
        yield
        return
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--log-file {path}: cannot be written ({error.strerror}); name another file"
        ) from error
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    with _handling(handler, logging.DEBUG):
        yield


@contextmanager
def _handling(handler: logging.Handler, level: int) -> Iterator[None]:
    """Give the package's logger a handler, and take it away afterwards."""
    handler.setLevel(level)
    before = LOGGER.level
    LOGGER.setLevel(min(level, before or logging.CRITICAL))
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before)
        handler.close()


@contextmanager
def default_device(name: Optional[str]) -> Iterator[None]:
    """Make MLX compute on a device, inside a ``with`` block.

    Args:
        name: ``cpu`` or ``gpu``; None leaves MLX's choice.

    Raises:
        ConfigError: if there is no such device.
    """
    if name is None:
        yield
        return
    import mlx.core as mx

    from mlx_trm.system.report import gpu_available

    if name == "gpu" and not gpu_available():
        raise ConfigError(
            "--device gpu: MLX finds no GPU here; use --device cpu, or leave --device out"
        )
    before = mx.default_device()
    mx.set_default_device(mx.gpu if name == "gpu" else mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(before)
