"""``python -m mlx_trm.export``: write a trained model as a file of MLX functions."""

import sys
from typing import List, Optional

from mlx_trm.cli.common import main as run_command
from mlx_trm.cli.export import add_arguments, run


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command.

    Args:
        argv: the words after the command's name; default those of the process.

    Returns:
        The exit code: 0 done, 1 the answer is no or a bug, 2 something the user can mend.
    """
    return run_command("export", add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
