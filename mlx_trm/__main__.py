"""``python -m mlx_trm``: list the commands, or start one."""

import sys
from typing import List, Optional

from mlx_trm.cli.commands import start_command
from mlx_trm.cli.completion import complete


def main(argv: Optional[List[str]] = None) -> int:
    """Start a command; this is what ``mlx-trm`` calls.

    Args:
        argv: its name and arguments; default those of the process.

    Returns:
        The exit code.
    """
    return start_command(sys.argv[1:] if argv is None else argv, {"completion": complete})


if __name__ == "__main__":
    sys.exit(main())
