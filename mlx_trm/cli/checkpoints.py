"""The trained model that a command works with: which run, which weights, how many bits each."""

import argparse
import logging
from typing import Optional, Tuple

from mlx_trm.cli.arguments import add_weights
from mlx_trm.errors import ConfigError
from mlx_trm.inference.quantization import BITS, Quantized, quantize_model
from mlx_trm.runs.checkpoint import Checkpoint, load_checkpoint

LOGGER = logging.getLogger(__name__)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Declare RUN, the first word of a command; :func:`add_model` declares the options."""
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint folder")


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


def load_run(args: argparse.Namespace) -> Tuple[Checkpoint, Optional[Quantized]]:
    """Load the model that :func:`add_run` and :func:`add_model` took, and say what was quantised.

    Raises:
        CheckpointError: if there is no checkpoint, or it cannot be used.
        ConfigError: if no layer of it can be quantised.
    """
    checkpoint = load_checkpoint(args.run, weights=args.weights)
    if args.quantize is None:
        return checkpoint, None
    try:
        quantized = quantize_model(checkpoint.model, args.quantize)
    except ValueError as error:
        raise ConfigError(f"--quantize {args.quantize}: {checkpoint.path}: {error}") from error
    LOGGER.info("%s", quantized.describe())
    return checkpoint, quantized
