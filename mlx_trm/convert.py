"""``python -m mlx_trm.convert``: read and write the checkpoints of the PyTorch original."""

import sys
from typing import List, Optional

from mlx_trm.cli.common import main as run_command
from mlx_trm.cli.convert import add_arguments, run


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command.

    Args:
        argv: the words after the command's name; default those of the process.

    Returns:
        The exit code: 0 done, 1 the answer is no or a bug, 2 something the user can mend.
    """
    return run_command("convert", add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
