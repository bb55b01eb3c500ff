"""The list of commands, and how ``python -m mlx_trm`` and ``mlx-trm`` start them."""

import importlib
import io
import os
import sys
from types import MappingProxyType
from typing import Callable, Dict, List, Mapping

from mlx_trm.errors import did_you_mean
from mlx_trm.system.environment import reserve_descriptors
from mlx_trm.system.output import discard, unwritten_output

INTERRUPTED, BROKEN_PIPE = 130, 141
NONE: Mapping[str, Callable[[List[str]], int]] = MappingProxyType({})
COMMANDS: Dict[str, str] = {
    "train": "train a model from a configuration",
    "evaluate": "score a trained model on its task's puzzles",
    "solve": "let a trained model solve one puzzle, step by step",
    "adapt": "learn new ARC tasks from their demonstrations, and answer them",
    "convert": "read and write the checkpoints of the PyTorch original",
    "plot": "draw what runs have logged, or print it as a table",
    "serve": "serve pages that solve puzzles and follow runs, and an API",
    "data": "list, build and show datasets",
    "export": "write a trained model as functions for Python, C++ and Swift",
    "parity": "compare this machine with recorded outputs of the PyTorch original",
    "diagnose": "report the system, MLX and its devices, and try them",
}


def called_as(command: str) -> str:
    """Say how the user has called a command: by this process's own words.

    Args:
        command: its name; empty for what lists the commands.
    """
    place, name = os.path.split(sys.argv[0] if sys.argv else "")
    if os.path.splitext(name)[0] in ("mlx-trm", "mlx-trm-script"):
        words = "mlx-trm"
    elif name == "__main__.py" and os.path.basename(place) == "mlx_trm":
        words = "python -m mlx_trm"
    else:
        return f"python -m mlx_trm.{command}" if command else "python -m mlx_trm"
    return f"{words} {command}".strip()


def overview() -> str:
    """Describe every command in a line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [f"usage: {called_as('')} COMMAND ...", ""]
        + lines
        + [
            "",
            "COMMAND --help says more; --version prints the version; completion bash or completion",
            "zsh prints what completes these words in that shell.",
        ]
    )


def start_command(argv: List[str], others: Mapping[str, Callable[[List[str]], int]] = NONE) -> int:
    """Start the command that a line begins with.

    Args:
        argv: the command's name and its arguments; nothing, or ``--help``, lists the commands.
        others: what is started besides, by name, and is not listed as a command.

    Returns:
        The exit code.
    """
    prepare_streams()
    try:
        code = _start(argv, others)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return close_output()
    except OSError as error:  # commands report their own; this is of what lists them, say
        discard(sys.stdout)
        sys.stderr.write(unwritten_output(error) + "\n")
        return 2
    except KeyboardInterrupt:  # while the command is being imported
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


def _start(argv: List[str], others: Mapping[str, Callable[[List[str]], int]]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview(), flush=True)
        return 0
    if argv[0] in ("-V", "--version"):
        from mlx_trm.version import __version__

        print(f"mlx_trm {__version__}", flush=True)
        return 0
    name = argv[0]
    if name in others:
        return others[name](argv[1:])
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        known = ", ".join(COMMANDS)
        sys.stderr.write(f"{called_as('')}: unknown command {name!r}{hint} (known: {known})\n")
        return 2
    code: int = importlib.import_module(f"mlx_trm.{name}").main(argv[1:])
    return code


def prepare_streams() -> None:
    """Make standard output and error usable, whatever the shell has done to them.

    A closed one swallows what is written; a closed standard input holds nothing. One with a small
    character set shows ``?`` for what it lacks, such as the lines of a grid.
    """
    reserve_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Open until the process ends, like those it stands for.
            nowhere = open(os.devnull, "w", encoding="utf-8")  # pylint: disable=R1732
            setattr(sys, name, nowhere)
        elif name == "stdout" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def close_output() -> int:
    """Discard what is still to be written to standard output: its reader, ``head``, has left.

    Returns:
        The exit code for it.
    """
    discard(sys.stdout)
    return BROKEN_PIPE
