"""The list of commands, and how ``python -m mlx_trm`` and ``mlx-trm`` start them."""

import importlib
import sys
from typing import Dict, List

from mlx_trm.errors import did_you_mean

COMMANDS: Dict[str, str] = {
    "train": "train a model from a configuration",
    "evaluate": "score a trained model on its task's puzzles",
    "solve": "let a trained model solve one puzzle, step by step",
    "data": "list, build and show datasets",
    "parity": "compare this machine with recorded outputs of the PyTorch original",
    "diagnose": "report the system, MLX and its devices",
}


def overview() -> str:
    """Describe every command in a line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m mlx_trm COMMAND ...   (or: mlx-trm COMMAND ...)", ""]
        + lines
        + ["", "COMMAND --help says more; --version prints the version."]
    )


def start_command(argv: List[str]) -> int:
    """Start the command that a line begins with.

    Args:
        argv: the command's name and its arguments; nothing, or ``--help``, lists the commands.

    Returns:
        The exit code.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if argv[0] in ("-V", "--version"):
        from mlx_trm import __version__

        print(f"mlx_trm {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        known = ", ".join(COMMANDS)
        sys.stderr.write(f"mlx-trm: unknown command {name!r}{hint} (known: {known})\n")
        return 2
    code: int = importlib.import_module(f"mlx_trm.{name}").main(argv[1:])
    return code
