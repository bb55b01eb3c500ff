"""Measures of how far two arrays are from each other, and what is kept of a comparison."""

import math
from dataclasses import dataclass
from typing import Optional

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Comparison:
    """One quantity of one recording, over all its steps.

    Attributes:
        case: name of the recording.
        quantity: what was compared.
        error: the largest error; None where there is nothing to compare (a model not supported) or
            it is not finite. Both are misses.
        tolerance: the largest error allowed; None where there is nothing to compare.
        typical: the typical error over what rounding does, 1 for two machines that differ as two
            machines do; None where rounding alone does not decide.
        passed: whether both are within what is allowed.
    """

    case: str
    quantity: str
    error: Optional[float]
    tolerance: Optional[float]
    typical: Optional[float]
    passed: bool


def host(array: mx.array) -> np.ndarray:
    """Copy an array to NumPy as float64."""
    return np.array(array.astype(mx.float32), dtype=np.float64)


def same_shape(ours: mx.array, theirs: mx.array) -> bool:
    """Whether two arrays can be compared."""
    return tuple(ours.shape) == tuple(theirs.shape)


def largest(ours: mx.array, theirs: mx.array) -> float:
    """Give the largest absolute difference; infinite where shapes differ."""
    if not same_shape(ours, theirs):
        return math.inf
    return float(np.max(np.abs(host(ours) - host(theirs)), initial=0.0))


def relative(ours: mx.array, theirs: mx.array) -> float:
    """Give the norm of the difference over the norm of ``theirs``, or alone where that is 0."""
    if not same_shape(ours, theirs):
        return math.inf
    norm = float(np.linalg.norm(host(theirs)))
    difference = float(np.linalg.norm(host(ours) - host(theirs)))
    return difference / norm if norm else difference


def share(ours: mx.array, theirs: mx.array, whole: mx.array) -> float:
    """Give the difference of a part of the loss over the whole; the part may be next to nothing."""
    difference = largest(ours, theirs)
    size = float(np.linalg.norm(host(whole)))
    return difference / size if size else difference


def count_differences(ours: mx.array, theirs: mx.array) -> float:
    """Count the elements that differ."""
    return float(np.sum(np.array(ours) != np.array(theirs)))
