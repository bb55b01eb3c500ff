"""``python -m mlx_trm.convert``: checkpoints of the reference in, and runs back out."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Optional, Tuple

from mlx_trm.cli.arguments import add_config, add_weights, read_config, whole, writable
from mlx_trm.cli.running import make_main
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.datasets.hub import PREFIX
from mlx_trm.errors import ConfigError
from mlx_trm.models import named_arrays
from mlx_trm.upstream.names import read_presets
from mlx_trm.upstream.reading import ReadOptions, convert_upstream
from mlx_trm.upstream.writing import WRAPPERS, export_upstream

LOGGER = logging.getLogger(__name__)

# Options of the way back and their defaults.
WAY_BACK = {"weights": "ema", "dtype": "reference", "names": "compiled"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument(
        "source",
        metavar="FILE",
        help="a checkpoint of the PyTorch original (what torch.save wrote, or safetensors), read "
        "without torch; or hf:OWNER/NAME[@REVISION][:FILE], downloaded from Hugging Face (pip "
        "install 'mlx-trm[hub]'); with --to-upstream a run folder",
    )
    parser.add_argument(
        "out", nargs="?", type=Path, metavar="RUN", help="the run folder to make (or --output RUN)"
    )
    parser.add_argument("--output", type=Path, metavar="RUN", help="the same as RUN")
    parser.add_argument(
        "--step", type=whole, metavar="N", help="of the checkpoint (default: what FILE says)"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="in place of --config, of a published checkpoint: "
        f"{', '.join(read_presets()['presets'])}",
    )
    parser.add_argument(
        "--entry",
        metavar="NAME",
        help="where in FILE the weights are, such as model or ema, if it holds several sets",
    )
    add_config(parser)
    parser.set_defaults(intermixed=True)
    add_weights(parser)
    parser.set_defaults(weights=None)  # shows whether it was named; ema is filled in
    back = parser.add_argument_group("the way back (with --weights)")
    back.add_argument(
        "--to-upstream",
        type=writable,
        metavar="FILE",
        help="write the weights of a run for the original: .safetensors, or .pt where torch is",
    )
    back.add_argument(
        "--names",
        choices=tuple(WRAPPERS),
        help="the original's wrappers in the names: with torch.compile (the default, what its "
        "load_checkpoint wants), without, or the bare model",
    )
    back.add_argument(
        "--dtype",
        choices=("reference", "float32", "bfloat16", "float16"),
        help="of the arrays; reference (the default) is float32, and forward_dtype for the initial "
        "states",
    )


def run(args: argparse.Namespace) -> int:
    """Convert in the direction that the arguments name."""
    if args.out is not None and args.output is not None:
        raise ConfigError(f"{args.out} and --output {args.output}: name one run folder")
    output = args.output or args.out
    if (output is None) == (args.to_upstream is None):
        raise ConfigError(
            "name --output RUN to read a checkpoint of the original, or --to-upstream FILE to "
            "write one"
        )
    if args.to_upstream is not None:
        return _export(args)
    unused = [f"--{name}" for name in WAY_BACK if getattr(args, name) is not None]
    if unused:
        raise ConfigError(
            f"{', '.join(unused)}: for --to-upstream only; a checkpoint of the original has one "
            "set of weights, which is taken as it is; leave the option out"
        )
    config, options = _settings(args)
    folder, source = convert_upstream(args.source, config, output, args.step, options)
    for key, value in source.taken.items():
        LOGGER.info("%s: %s, taken from the checkpoint", key, value)
    count = sum(array.size for _, array in named_arrays(source.model.parameters()))
    spec = source.model.spec
    print(
        f"{folder}: {source.config.model.name}, {count:,} numbers, {spec.vocab_size} tokens, "
        f"{spec.seq_len} cells, {spec.num_puzzle_identifiers} puzzle identifiers"
    )
    return 0


def _settings(args: argparse.Namespace) -> Tuple[Optional[ExperimentConfig], ReadOptions]:
    """Read the configuration, or leave it open where that of a published checkpoint is taken."""
    known = args.preset is not None or args.source.startswith(PREFIX)
    if args.preset is not None and args.config is not None:
        raise ConfigError("--preset and --config: name one of them")
    if args.config is None and not known:
        try:
            read_config(args)
        except ConfigError as error:
            raise ConfigError(f"{error}; or --preset NAME, of a published checkpoint") from error
    config = read_config(args) if args.config is not None else None
    options = ReadOptions(
        entry=args.entry,
        preset=args.preset,
        overrides=args.overrides,
        progress=sys.stderr.isatty() and not args.quiet,
    )
    return config, options


def _export(args: argparse.Namespace) -> int:
    reading = (args.config, args.step, args.preset, args.entry, *args.overrides)
    if any(given is not None for given in reading):
        raise ConfigError("--to-upstream: a run has its own configuration; name the run alone")
    named = {name: getattr(args, name) or default for name, default in WAY_BACK.items()}
    checkpoint = export_upstream(
        args.source,
        args.to_upstream,
        allow_plugins=args.allow_plugins,
        **named,
    )
    print(
        f"{args.to_upstream}: {checkpoint.config.model.name}, step {checkpoint.step}, "
        f"{checkpoint.weights} weights"
    )
    return 0


main = make_main("convert", add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
