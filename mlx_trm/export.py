"""``python -m mlx_trm.export``: a model as MLX functions or as an ONNX graph, a run as pieces."""

import argparse
import sys
from pathlib import Path

import numpy as np

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import positive, writable
from mlx_trm.cli.checkpoints import add_model, add_run, load_run, locate_run
from mlx_trm.cli.running import make_main
from mlx_trm.errors import ConfigError
from mlx_trm.inference.exporting import export_checkpoint, export_onnx
from mlx_trm.inference.exporting.onnx_check import compare_onnx
from mlx_trm.inference.portable import pack_checkpoint, unpack_checkpoint
from mlx_trm.models.carry import random_batch
from mlx_trm.runs.checkpoint import Checkpoint

FORMATS = ("mlx", "onnx")
# Puzzles and steps that --check compares.
PUZZLES, STEPS = 3, 3


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
        "--format",
        choices=FORMATS,
        help="mlx: functions that any front end of MLX calls (the default); onnx: a graph for ONNX "
        'runtimes, a browser\'s among them (pip install "mlx-trm[onnx]")',
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="with --format onnx: compare the file with MLX, as onnxruntime computes it",
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
    if args.format == "onnx":
        return _export_onnx(args)
    if args.check:
        raise ConfigError("--check: for --format onnx only; leave it out")
    checkpoint, quantized = load_run(args)
    beside = export_checkpoint(checkpoint, args.output, args.batch_size or [1], quantized)
    size = display.size(Path(args.output).stat().st_size)
    print(f"written: {args.output} ({size}) and {beside}")
    return 0


def _export_onnx(args: argparse.Namespace) -> int:
    """Write an ONNX graph, and compare it where that is asked for."""
    if args.quantize is not None or args.batch_size:
        raise ConfigError(
            "--quantize, --batch-size: not for --format onnx, which is float32 and takes any "
            "number of puzzles; leave them out"
        )
    checkpoint = load_run(args)[0]
    beside = export_onnx(checkpoint, args.output)
    size = display.size(Path(args.output).stat().st_size)
    print(f"written: {args.output} ({size}) and {beside}")
    return _check(checkpoint, args.output) if args.check else 0


def _check(checkpoint: Checkpoint, path: Path) -> int:
    """Compare an ONNX file with MLX on a few random puzzles, and say how far they are apart."""
    model = checkpoint.model
    batch = random_batch(model.spec, PUZZLES, seed=0)
    tokens, rows = np.array(batch.inputs), np.array(batch.puzzle_identifiers)
    found = compare_onnx(model, path, tokens, STEPS, rows)
    worst = max(found, key=lambda each: each.error / each.allowed)
    passed = worst.passed
    print(
        f"{'equal to MLX but for rounding' if passed else 'NOT equal to MLX'}: {PUZZLES} puzzles, "
        f"{STEPS} steps; the worst is {worst.quantity} of step {worst.step}, relative error "
        f"{worst.error:.1e}, where rounding may make {worst.allowed:.1e}"
    )
    return 0 if passed else 1


def _carry(args: argparse.Namespace) -> int:
    """Pack a run, or make one of a pack."""
    if args.quantize is not None or args.batch_size or args.format or args.check:
        raise ConfigError(
            "--quantize, --batch-size, --format, --check: for --output only; leave them out"
        )
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
