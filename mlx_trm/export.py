"""``python -m mlx_trm.export``: write a trained model as a file of MLX functions."""

import argparse
import sys
from pathlib import Path

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import positive, writable
from mlx_trm.cli.checkpoints import add_model, add_run, load_run
from mlx_trm.cli.running import make_main
from mlx_trm.inference.exporting import export_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    add_run(parser)
    parser.add_argument(
        "--output",
        type=writable,
        required=True,
        metavar="FILE",
        help="the file to write, such as model.mlxfn; FILE.json beside it describes it",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        action="append",
        metavar="N",
        help="puzzles it takes at a time (default: 1; repeatable, to choose between when calling)",
    )
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Export and say what was written."""
    checkpoint, quantized = load_run(args)
    beside = export_checkpoint(checkpoint, args.output, args.batch_size or [1], quantized)
    size = display.size(Path(args.output).stat().st_size)
    print(f"written: {args.output} ({size}) and {beside}")
    return 0


main = make_main("export", add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
