"""The trained model that a command works with: which run, which weights, how many bits each."""

import argparse
import logging
import os
from pathlib import Path
from typing import Optional, Tuple

from mlx_trm.cli.arguments import add_weights
from mlx_trm.errors import ConfigError
from mlx_trm.inference.packaged import find_pretrained, pretrained
from mlx_trm.inference.quantization import BITS, Quantized, quantize_model
from mlx_trm.runs.checkpoint import Checkpoint, load_checkpoint

LOGGER = logging.getLogger(__name__)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Declare RUN, the first word of a command; :func:`add_model` declares the options."""
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a run folder, a checkpoint folder, or the name of weights that come with the "
        f"package: {', '.join(each.name for each in pretrained())}",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Let a command choose among a run's weights, and quantise them."""
    add_weights(parser)
    parser.add_argument(
        "--quantize",
        type=int,
        choices=BITS,
        metavar="BITS",
        help="compute with weights of 8 or 4 bits; what that costs is in docs/export.md",
    )


def locate_run(run: str) -> Path:
    """Give the folder that RUN means: the user's own, or one of those that come with the package.

    Raises:
        ConfigError: if there is neither.
    """
    if os.path.exists(run) or os.sep in run:
        return Path(run)
    try:
        return find_pretrained(run).folder
    except ConfigError as error:
        raise ConfigError(f"{run}: no such run or checkpoint folder, and {error}") from error


def load_run(args: argparse.Namespace) -> Tuple[Checkpoint, Optional[Quantized]]:
    """Load the model that :func:`add_run` and :func:`add_model` took, and say what was quantised.

    Raises:
        CheckpointError: if there is no checkpoint, or it cannot be used.
        ConfigError: if no layer of it can be quantised.
    """
    checkpoint = load_checkpoint(locate_run(args.run), weights=args.weights)
    if args.quantize is None:
        return checkpoint, None
    try:
        quantized = quantize_model(checkpoint.model, args.quantize)
    except ValueError as error:
        raise ConfigError(f"--quantize {args.quantize}: {checkpoint.path}: {error}") from error
    LOGGER.info("%s", quantized.describe())
    return checkpoint, quantized
