"""``python -m mlx_trm.export``: a trained model as MLX functions, a run as pieces to carry."""

import argparse
import sys
from pathlib import Path

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import positive, writable
from mlx_trm.cli.checkpoints import add_model, add_run, load_run, locate_run
from mlx_trm.cli.running import make_main
from mlx_trm.errors import ConfigError
from mlx_trm.inference.exporting import export_checkpoint
from mlx_trm.inference.portable import pack_checkpoint, unpack_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    add_run(parser)
    parser.add_argument(
        "--output",
        type=writable,
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
    carry = parser.add_argument_group("a run to go on with on another machine (docs/training.md)")
    carry.add_argument(
        "--pack",
        type=Path,
        metavar="FOLDER",
        help="write RUN's newest checkpoint as pieces of at most 16 MB, moments rounded to "
        "bfloat16",
    )
    carry.add_argument(
        "--unpack", type=Path, metavar="NEW", help="RUN is such a folder: make the run folder NEW"
    )


def run(args: argparse.Namespace) -> int:
    """Export and say what was written."""
    chosen = [name for name in ("output", "pack", "unpack") if getattr(args, name) is not None]
    if len(chosen) != 1:
        raise ConfigError("name one of --output FILE, --pack FOLDER, --unpack NEW")
    if chosen != ["output"]:
        return _carry(args)
    checkpoint, quantized = load_run(args)
    beside = export_checkpoint(checkpoint, args.output, args.batch_size or [1], quantized)
    size = display.size(Path(args.output).stat().st_size)
    print(f"written: {args.output} ({size}) and {beside}")
    return 0


def _carry(args: argparse.Namespace) -> int:
    """Pack a run, or make one of a pack."""
    if args.quantize is not None or args.batch_size:
        raise ConfigError("--quantize, --batch-size: for --output only; leave them out")
    if args.pack is not None:
        pack = pack_checkpoint(locate_run(args.run), args.pack)
        print(
            f"written: {pack.folder}, step {pack.step}, {pack.pieces} pieces, "
            f"{display.size(pack.size)}; moments are bfloat16, so it goes on, but not to the bit"
        )
    else:
        pack = unpack_checkpoint(args.run, args.unpack, allow_plugins=args.allow_plugins)
        print(f"written: {pack.folder}, step {pack.step}; go on by train --resume {pack.folder}")
    return 0


main = make_main("export", add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
