"""Recorded outputs of the reference implementation, and how far from them a port may be.

A recording holds one training and evaluation run of the reference, step by step, with the state
that entered each step. tests/reference/README.md describes the format; ``replay.py`` compares.
"""

import json
import re
import zlib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import mlx.core as mx
import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.models.carry import Batch
from mlx_trm.runs.weights import read_safetensors
from mlx_trm.upstream.names import from_upstream_names

Arrays = Dict[str, mx.array]

# A port is allowed four times the distance of the reference from itself on another device (each
# recording's ``self_deviation``), and never asked for less than these floors: a few units in the
# last place of float32, or of the half-precision dtype, after the recursion has amplified them.
# float16 has three more bits of mantissa than bfloat16. Losses and gradients are relative.
SELF_DEVIATION_FACTOR = 4.0
FLOORS = {
    "float32": {"values": 2e-5, "loss": 1e-6, "grad": 2e-5},
    "bfloat16": {"values": 0.1, "loss": 2e-3, "grad": 0.05},
    "float16": {"values": 0.0125, "loss": 2.5e-4, "grad": 6.25e-3},
}
# Fed with recorded inputs, so nothing is amplified: float32 rounding of numbers of order one.
EXACT_INPUTS = 1e-6

# quantity -> (the self_deviation key that bounds it, the kind of floor)
_BOUNDS = {
    "eval.logits": ("eval.logits", "values"),
    "eval.q_halt_logits": ("eval.q_halt_logits", "values"),
    "eval.q_continue_logits": ("eval.q_halt_logits", "values"),
    "eval.carry": ("eval.carry", "values"),
    "eval.loss": ("train.loss", "loss"),
    "train.logits": ("train.logits", "values"),
    "train.q_halt_logits": ("eval.q_halt_logits", "values"),
    "train.q_continue_logits": ("eval.q_halt_logits", "values"),
    "train.carry": ("eval.carry", "values"),
    "train.loss": ("train.loss", "loss"),
    "train.grad": ("train.grad_rel", "grad"),
}
# Whole numbers, and copies of recorded ones: they are equal or wrong.
_EXACT = ("steps", "halted", "refill", "counts", "preds")


class Recording:
    """One recording file: arrays by key, and the metadata parsed.

    Attributes:
        case: the file's name without suffix.
        arrays: by the keys of tests/reference/README.md.
        model: name of the reference's model.
        settings: its configuration, by the reference's field names.
        hyperparameters: of training; empty in recordings that do not train.
        loss: ``stablemax`` or ``softmax``.
        self_deviation: distance of the reference from itself on another device.
    """

    def __init__(self, path: Path) -> None:
        """Read a recording.

        Raises:
            DataError: if the file cannot be read or lacks what a recording has.
        """
        self.case = path.stem
        self.path = path
        try:
            self.arrays: Arrays
            metadata: Mapping[str, str]
            self.arrays, metadata = read_safetensors(path)
        except ValueError as error:
            raise DataError(
                f"{path}: cannot be read as safetensors ({error}); copy or record it again"
            ) from error
        try:
            self.model = metadata["model"]
            self.settings: Dict[str, Any] = json.loads(metadata["config"])
            self.hyperparameters = json.loads(metadata.get("hyperparameters", "{}"))
            self.self_deviation = json.loads(metadata.get("self_deviation", "{}"))
            self.loss = metadata["loss"].replace("_cross_entropy", "")
            self.dtype = self.settings["forward_dtype"]
            self.halt_max_steps = int(self.settings["halt_max_steps"])
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}: the metadata of a recording is missing or malformed ({error!r}); "
                "it needs model, config and loss"
            ) from error
        if self.dtype not in FLOORS:
            raise DataError(f"{path}: forward_dtype {self.dtype!r} is not one of {list(FLOORS)}")

    def __getitem__(self, key: str) -> mx.array:
        """Give the array of a key; DataError where the recording lacks it."""
        if key not in self.arrays:
            raise DataError(f"{self.path}: the recording has no array {key!r}")
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        """Whether the recording has an array."""
        return key in self.arrays

    def group(self, prefix: str) -> Arrays:
        """Give the arrays whose key starts with ``prefix``, by the rest of the key."""
        start = len(prefix)
        return {key[start:]: value for key, value in self.arrays.items() if key.startswith(prefix)}

    def batch(self, prefix: str) -> Batch:
        """Give the Batch recorded under a prefix."""
        return Batch(*(self[prefix + name].astype(mx.int32) for name in Batch._fields))

    def steps(self, kind: str) -> List[int]:
        """Give the step numbers recorded for ``eval`` (from 0) or ``train`` (from 1), in order.

        Raises:
            DataError: if there are none, or one is missing in between.
        """
        found = {re.match(rf"{kind}\.step(\d+)\.", key) for key in self.arrays}
        numbers = sorted({int(match.group(1)) for match in found if match})
        first = 0 if kind == "eval" else 1
        expected = list(range(first, max(numbers, default=first) + 1))
        if numbers != expected:
            missing = min(set(expected) - set(numbers))
            raise DataError(f"{self.path}: the recording has no array {kind}.step{missing}.*")
        return numbers

    def weights(self, prefix: str, model: RecursiveModel) -> Arrays:
        """Give all weights at a time, float32 by our names.

        Args:
            prefix: ``init``, or ``train.stepS.param`` for those after a step. The latter are
                recorded without the buffers, which stay as they were.
            model: says names and shapes where a recording stores no weights.
        """
        state = {**self.group("init."), **self.group(prefix + ".")}
        return from_upstream_names(state) if state else formula_weights(model)

    def latent_names(self, model: RecursiveModel) -> List[str]:
        """Give the names that the latents of a model have in keys: z_H, z_L, ..."""
        return ["z_" + name.replace("_init", "") for name in model.initial_names]

    def tolerance(self, quantity: str) -> float:
        """Give the largest error allowed for a quantity."""
        if quantity not in _BOUNDS:
            return 0.0 if quantity.split(".")[-1] in _EXACT else EXACT_INPUTS
        key, kind = _BOUNDS[quantity]
        own = SELF_DEVIATION_FACTOR * float(self.self_deviation.get(key, 0.0))
        return max(own, FLOORS[self.dtype][kind])


def formula_weights(model: RecursiveModel) -> Arrays:
    """Make the weights that full-size recordings define by a formula instead of storing."""
    weights = {}
    for name, array in named_arrays(model.parameters()):
        draws = np.random.RandomState(zlib.crc32(f"inner.{name}".encode("utf-8")))
        values = draws.standard_normal(array.shape)
        if array.ndim == 2:
            values = values / np.sqrt(array.shape[-1])
        value = mx.array(values.astype(np.float32))
        if name in model.initial_names:
            value = value.astype(model.dtype).astype(mx.float32)
        weights[name] = value
    return weights


def read_recordings(folder: Path, only: Sequence[str] = ()) -> List[Recording]:
    """Read every recording in a folder, in the order of their names.

    Args:
        folder: with ``*.safetensors`` files.
        only: cases to keep; empty for all. A name may be a pattern such as ``trm_*``.

    Raises:
        DataError: if the folder is not one, holds none, or one of them cannot be read.
    """
    if not folder.is_dir():
        state = "is no folder; name the one that holds" if folder.exists() else "no such folder of"
        raise DataError(f"{folder}: {state} recordings")
    paths = sorted(path for path in folder.glob("*.safetensors"))
    if only:
        paths = [path for path in paths if any(fnmatchcase(path.stem, name) for name in only)]
    if not paths:
        chosen = f" whose name matches {' or '.join(map(repr, only))}" if only else ""
        raise DataError(f"{folder}: holds no recording (*.safetensors){chosen}")
    return [Recording(path) for path in paths]
