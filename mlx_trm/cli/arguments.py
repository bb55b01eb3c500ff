"""Arguments that commands share, and settings such as ``train.lr=3e-4`` anywhere on the line."""

import argparse
import os
import re
import shlex
from pathlib import Path
from typing import Any, Iterator, List, NoReturn, Set, Tuple

from mlx_trm.config.loading import LAYOUT, load_config, packaged_configs
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import ConfigError, did_you_mean
from mlx_trm.inference.search.settings import HALTS, SELECTIONS, STARTS, SearchSettings
from mlx_trm.runs.layout import STATE
from mlx_trm.system.files import json_text, write_text

SETTING = re.compile(r"[\w.-]*=")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create a parser that takes no abbreviated options."""
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"{' '.join(message.split())} (see {self.prog} --help)\n")

    def family(self) -> Iterator["Parser"]:
        """Yield this parser and the parsers of its sub-commands."""
        yield self
        for action in self._actions:
            if isinstance(action.choices, dict):
                for parser in action.choices.values():
                    yield from parser.family()

    def options(self, with_value: bool = False) -> Set[str]:
        """Give the options of the family, or only those that are followed by a value."""
        return {
            option
            for parser in self.family()
            for action in parser._actions  # pylint: disable=protected-access
            for option in action.option_strings
            if not with_value or action.nargs != 0
        }


def add_shared(parser: Parser) -> None:
    """Declare the arguments that every command has, for its sub-commands too."""
    for member in parser.family():
        inherited = member is not parser  # the sub-command's defaults would hide what came before
        group = member.add_argument_group("shared by all commands")
        loudness = group.add_mutually_exclusive_group()
        loudness.add_argument(
            "-v",
            "--verbose",
            action="count",
            default=argparse.SUPPRESS if inherited else 0,
            help="say more; -vv adds the traceback of an error",
        )
        loudness.add_argument(
            "-q",
            "--quiet",
            action="store_true",
            default=argparse.SUPPRESS if inherited else False,
            help="say less",
        )
        group.add_argument(
            "--log-file",
            metavar="FILE",
            default=argparse.SUPPRESS if inherited else None,
            help="also append messages to this file, with times",
        )
        group.add_argument(
            "--device",
            choices=("cpu", "gpu"),
            default=argparse.SUPPRESS if inherited else None,
            help="where to compute (default: the GPU, where MLX finds one)",
        )


# Options of a search, as the settings are called.
SEARCH_OPTIONS = ("halt", "rollouts", "noise", "start", "symmetries", "select", "seed")


def add_search(parser: argparse.ArgumentParser) -> None:
    """Let a command solve puzzles by a search; :func:`read_search` reads what it was given."""
    group = parser.add_argument_group("several runs of a puzzle (docs/solving.md)")
    group.add_argument(
        "--halt",
        choices=HALTS,
        help="when a run ends: after all steps, where the model believes its answer, where the "
        "task's rules accept it, or where it stays the same (default: fixed)",
    )
    group.add_argument("--rollouts", type=positive, metavar="N", help="runs of a puzzle, at most")
    group.add_argument(
        "--noise", type=above_zero, metavar="X", help="deviation of noise added before each step"
    )
    group.add_argument(
        "--start",
        choices=STARTS,
        help="where runs start: as the model's configuration says, at its own initial states, or "
        "after the first one at random (default: random where runs would be the same)",
    )
    group.add_argument(
        "--symmetries",
        action="store_true",
        help="runs after the first work on symmetric copies of the puzzle",
    )
    group.add_argument(
        "--select",
        choices=SELECTIONS,
        help="whose answer is given: of the highest q, of most runs, of the first that the rules "
        "accept, of the smallest last change, of the first to halt (default: q)",
    )
    group.add_argument("--seed", type=whole, metavar="N", help="of all that is random (default: 0)")


def asks_for_search(args: argparse.Namespace, but: str = "") -> bool:
    """Whether any option of :func:`add_search` was given, but one that may mean something else."""
    names = [name for name in SEARCH_OPTIONS if name != but]
    return any(getattr(args, name) not in (None, False) for name in names)


def read_search(args: argparse.Namespace, batch_size: int) -> SearchSettings:
    """Give the settings that :func:`add_search` and ``--steps`` took.

    Raises:
        ConfigError: if they do not fit together.
    """
    given = {name: getattr(args, name) for name in ("steps", *SEARCH_OPTIONS)}
    given = {name: value for name, value in given.items() if value is not None}
    return SearchSettings(**given, batch_size=batch_size)


def add_json(parser: argparse.ArgumentParser, text: str) -> None:
    """Let a command take ``--json FILE``, which is checked before the command works for it.

    Args:
        parser: of the command.
        text: the option's help.
    """
    parser.add_argument("--json", type=writable, metavar="FILE", help=text)


def save_json(path: Path, content: object, option: str = "--json") -> None:
    """Write the file that an option names, whole; a pipe or ``/dev/stdout`` is written to.

    What is no finite number, because it was not measured or overflowed, is null there.

    Raises:
        ConfigError: if it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(json_text(content, 2) + "\n", encoding="utf-8")
        else:
            write_text(os.path.realpath(path), json_text(content, 2) + "\n")
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: cannot be written ({error.strerror}); name another file"
        ) from error


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Let a command choose between a run's averaged and raw weights."""
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        default="ema",
        help="the averaged weights, where the run kept an average, or the raw ones",
    )


def writable(text: str) -> Path:
    """Read the name of a file to write, which is not one of a checkpoint's."""
    path, problem = Path(text), ""
    if path.is_dir() or not text:
        problem = "it is a folder" if text else "the name is empty"
    elif not path.parent.is_dir():
        problem = f"there is no folder {path.parent}"
    elif (path.parent / STATE).exists():
        problem = "its folder is a checkpoint; name a file elsewhere"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = "it is not writable"
    if problem:
        raise argparse.ArgumentTypeError(f"{text}: cannot be written ({problem})")
    # /dev/stdout is a link, which would be replaced where it leads to a plain file.
    return Path(os.path.realpath(path)) if path.parent == Path("/dev") and path.is_file() else path


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Let a command or sub-command take settings; they are collected in ``args.overrides``."""
    group = parser.add_argument_group("settings")
    group.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, such as train.lr=3e-4; anywhere on the line",
    )
    group.add_argument("--set", metavar="KEY=VALUE", help="the same as KEY=VALUE")
    parser.set_defaults(takes_overrides=True)


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Let a command run the code that a checkpoint's own configuration names."""
    parser.add_argument(
        "--allow-plugins",
        action="store_true",
        help="run the plugins that the configuration in a run or checkpoint folder names: they are "
        "code of whoever made it (docs/security.md); without this they are refused, unless "
        "plugins=FILE names your own",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Let a command or sub-command take ``--config`` and settings; see :func:`read_config`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"a YAML file, or one that comes with the package: {', '.join(packaged_configs())}",
    )
    add_plugins(parser)
    add_overrides(parser)


def read_config(args: argparse.Namespace) -> ExperimentConfig:
    """Load the configuration that :func:`add_config` took.

    Raises:
        ConfigError: if none was named, or for what is wrong in it.
    """
    if args.config is None:
        known = ", ".join(packaged_configs())
        files = [word for word in args.overrides if word.endswith((".yaml", ".yml"))]
        hint = f"; did you mean --config {files[0]}?" if files else ""
        raise ConfigError(f"--config FILE is missing{hint} (packaged: {known})")
    return load_config(args.config, args.overrides, args.allow_plugins)


def parse_line(parser: Parser, argv: List[str]) -> argparse.Namespace:
    """Parse a command line whose settings may stand anywhere.

    Args:
        parser: with everything declared.
        argv: the words after the command's name.

    Returns:
        The arguments; ``overrides`` is a list, empty where the command takes none.

    Raises:
        SystemExit: with code 2 after one line on standard error, or 0 after ``--help``.
    """
    settings: List[str] = []
    if any(member.get_default("takes_overrides") for member in parser.family()):
        argv, settings = _split_settings(argv, parser.options(with_value=True))
    parse = parser.parse_known_args
    if parser.get_default("intermixed"):
        parse = parser.parse_known_intermixed_args
    args, extra = parse(argv)
    unknown = [word for word in extra if word.startswith("-")]
    if unknown:
        parser.error(f"unknown option {unknown[0]!r}{_hint(parser, args, unknown[0], argv)}")
    words = list(getattr(args, "overrides", [])) + extra + settings
    if words and not getattr(args, "takes_overrides", False):
        parser.error(f"unexpected {words[0]!r}")
    args.overrides = words
    return args


def _hint(parser: Parser, args: argparse.Namespace, word: str, argv: List[str]) -> str:
    """Say what an unknown option may have been: a setting, which has no dashes, or an option.

    Args:
        parser: of the command.
        args: what was understood.
        word: the option, perhaps with ``=`` and a value.
        argv: the words after the command's name, in which a value may follow.
    """
    if word == "-":  # a FEN has such a field
        return "; put a puzzle of several words between quotes"
    name, equals, value = word.partition("=")
    mistyped = did_you_mean(name, parser.options())
    if name in parser.options():
        mistyped = "; another sub-command has it, this one has not"
    if not getattr(args, "takes_overrides", False) or not getattr(args, "any_setting", True):
        return mistyped
    meant = LAYOUT.find_settings(name)
    same = name.strip("-").replace("-", "_")
    exact = [each for each in meant if same in (each, each.rpartition(".")[2])]
    if not meant or (mistyped and not exact):
        return mistyped
    if not equals:
        following = argv[argv.index(word) + 1 :] if word in argv else []
        value = following[0] if following and not following[0].startswith("--") else "VALUE"
    written = " or ".join(shell_word(f"{each}={value}") for each in meant[:3])
    return f"; settings have no dashes: write {written}"


def shell_word(word: str) -> str:
    """Write a word so that every shell takes it as it is."""
    return word if re.fullmatch(r"[\w.,:/@%+=-]+", word) else shlex.quote(word)


def _split_settings(argv: List[str], valued: Set[str]) -> Tuple[List[str], List[str]]:
    """Take settings out of a line, but not the values of options such as ``--log-file a=b``."""
    rest: List[str] = []
    settings: List[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word.startswith("--set="):
            settings.append(word[len("--set=") :])
        elif word == "--set":
            value = next(words, None)
            if value is None:
                rest.append(word)  # the parser says what is missing
            else:
                settings.append(value)
        elif word.startswith("-"):
            rest.append(word)
            if word in valued:
                rest += [value for value in [next(words, None)] if value is not None]
        elif SETTING.match(word):
            settings.append(word)
        else:
            rest.append(word)
    return rest, settings


def whole(text: str) -> int:
    """Read a whole number of at least 0."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def above_zero(text: str) -> float:
    """Read a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
