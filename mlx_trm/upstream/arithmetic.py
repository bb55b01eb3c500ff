"""Arithmetic of honest machines, in NumPy, with gradients: they round where every machine rounds.

Two machines that compute the same step add in another order, have another exp, and keep or round
what is inside a fused attention. Everything else is decided: PyTorch rounds the result of each
operation once to ``forward_dtype``. An :class:`Arithmetic` does that for several machines at once,
which differ in the rest: each result of each is moved at random by what float32 arithmetic may be
off, before it is rounded.

* A product of matrices is off by up to half a float32 unit of the norms of its row and column: what
  adding its terms one after the other loses, typically.
* Every other number is off by up to one unit of itself.
* In half precision the inside of attention is rounded as in a flash kernel (the exponentials,
  before they meet the values), stays float32, or is rounded after every operation: machine by
  machine.

Arrays have one axis more than in a model, the first: the machine. Weights lack it, their gradients
have it. Shape letters: M machines, B batch, T positions, D hidden.
"""

import math
from contextlib import contextmanager
from typing import Callable, Iterator, List, Optional, Tuple

import numpy as np

Back = Callable[[np.ndarray], None]
CosSin = Tuple[np.ndarray, np.ndarray]

# Half the distance of float32 from 1 to the next number: what one rounding may be off, relative.
UNIT = 2.0**-24
# Of the norms of a product's rows and columns, in units.
_PRODUCT = 0.5
# Draws are slices, at random places, of one long array of draws: drawing anew takes longer than the
# arithmetic.
_POOL = 2**20
_ATTENTIONS = ("flash", "wide", "rounded")


class Value:
    """An array of a step, and the gradient that reaches it.

    Attributes:
        data: the numbers.
        grad: filled by :meth:`Arithmetic.differentiate`; None where nothing arrives.
    """

    __slots__ = ("data", "grad", "back", "rounded", "norms")

    def __init__(self, data: np.ndarray, back: Optional[Back] = None) -> None:
        """Wrap numbers; ``back`` hands a gradient on to what they were computed from."""
        self.data = data
        self.grad: Optional[np.ndarray] = None
        self.back = back
        # Of weights, which are used many times: cast, and the norms of their columns.
        self.rounded: Optional[np.ndarray] = None
        self.norms: Optional[np.ndarray] = None


class Arithmetic:
    """Operations on :class:`Value`, each rounded once; see the module.

    Attributes:
        machines: M.
        work: NumPy dtype that numbers are computed and kept in.
        differentiating: whether operations are kept for :meth:`differentiate`.
    """

    def __init__(
        self, dtype: str, machines: int = 0, work: type = np.float32, seed: int = 0
    ) -> None:
        """Make machines.

        Args:
            dtype: ``forward_dtype`` of the step, to which results are rounded: float32, bfloat16,
                float16, or float64 for none.
            machines: how many; 0 for one on which nothing is off but by rounding to ``work`` and
                ``dtype``. With float64 for both that is the exact step.
            work: NumPy dtype to compute in.
            seed: of what is off.
        """
        self.dtype, self.work = dtype, work
        self.machines = max(machines, 1)
        self.differentiating = False
        self._tape: List[Value] = []
        self._pool: Optional[np.ndarray] = None
        if machines:
            self._random = np.random.default_rng(seed)
            self._pool = self._random.uniform(-UNIT, UNIT, _POOL).astype(work)
        kinds = np.array([_ATTENTIONS[i % len(_ATTENTIONS)] for i in range(self.machines)])
        self._attentions = kinds.reshape((-1, 1, 1, 1, 1))

    # Rounding ----------------------------------------------------------------------------------

    def round(self, x: np.ndarray) -> np.ndarray:
        """Round to the dtype, ties to even."""
        if self.dtype == "bfloat16":
            bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
            rounded = bits >> 16
            rounded &= 1
            rounded += np.uint32(0x7FFF)
            rounded += bits
            rounded &= np.uint32(0xFFFF0000)
            return rounded.view(np.float32).astype(self.work, copy=False)
        if self.dtype == "float16":
            return x.astype(np.float16).astype(self.work)
        return x

    def off(self, x: np.ndarray) -> np.ndarray:
        """Move each number by up to one unit of itself."""
        if self._pool is None:
            return x
        moved = x * self._draws(self._pool, x.shape)
        moved += x
        return moved

    def done(self, x: np.ndarray) -> np.ndarray:
        """Give the result of an operation as a machine would: off, and rounded."""
        return self.round(self.off(x))

    def _product(
        self, x: np.ndarray, w: np.ndarray, norms: Optional[np.ndarray] = None
    ) -> np.ndarray:
        """Multiply (..., n, k) by (..., k, m) in float32: off, not yet rounded to the dtype."""
        y = x @ w
        if self._pool is None:
            return y
        columns = _column_norms(w) if norms is None else norms
        moved = (
            self._draws(self._pool, y.shape)
            * (_PRODUCT * _column_norms(x.swapaxes(-1, -2)))[..., None]
        )
        moved *= columns[..., None, :]
        moved += y
        return moved

    def _draws(self, pool: np.ndarray, shape: Tuple[int, ...]) -> np.ndarray:
        count = math.prod(shape)
        parts = []
        while count > 0:
            size = min(count, _POOL // 2)
            start = int(self._random.integers(0, _POOL - size + 1))
            parts.append(pool[start : start + size])
            count -= size
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(shape)

    # Gradients ---------------------------------------------------------------------------------

    def keep(self, data: np.ndarray, back: Back) -> Value:
        """Make a value, and keep how its gradient goes on where one will be asked for."""
        value = Value(data)
        if self.differentiating:
            value.back = back
            self._tape.append(value)
        return value

    def give(self, value: Value, gradient: np.ndarray) -> None:
        """Add to the gradient of a value, rounding the sum as PyTorch does."""
        value.grad = gradient if value.grad is None else self.done(value.grad + gradient)

    @contextmanager
    def not_differentiating(self) -> Iterator[None]:
        """Compute something beside what is kept for a gradient."""
        before, self._tape = self._tape, []
        try:
            yield
        finally:
            self._tape = before

    def differentiate(self) -> None:
        """Take the gradients that were given to results back to where they come from."""
        for value in reversed(self._tape):
            if value.grad is not None and value.back is not None:
                value.back(value.grad)
                value.grad = None
        self._tape = []

    # Operations --------------------------------------------------------------------------------

    def cast(self, weight: Value) -> Value:
        """Round a float32 weight to the dtype; its gradients are summed in float32."""
        if weight.rounded is None:
            weight.rounded = self.round(weight.data)

        def back(gradient: np.ndarray) -> None:
            weight.grad = gradient if weight.grad is None else self.off(weight.grad + gradient)

        return self.keep(weight.rounded, back)

    def linear(self, x: Value, weight: Value, bias: Optional[Value] = None) -> Value:
        """Map (M, ..., k) by a weight of (m, k) and a bias of (m,) to (M, ..., m)."""
        used = self.cast(weight)
        if weight.norms is None and self._pool is not None:
            weight.norms = _column_norms(used.data.T)
        flat = self._flat(x.data)
        result = self._product(flat, used.data.T, weight.norms)
        added = None if bias is None else self.cast(bias)
        if added is not None:
            result = self.off(result + added.data)

        def back(gradient: np.ndarray) -> None:
            gradient = self._flat(gradient)
            to_x = self.round(self._product(gradient, used.data))
            self.give(x, to_x.reshape(x.data.shape))
            self.give(used, self.round(self._product(gradient.swapaxes(-1, -2), flat)))
            if added is not None:
                self.give(added, self.done(gradient.sum(axis=1)))

        return self.keep(self.round(result).reshape(*x.data.shape[:-1], -1), back)

    def _flat(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.machines, -1, x.shape[-1])

    def add(self, a: Value, b: Value) -> Value:
        """Add (M, B, T, D) and the same or (T, D)."""

        def back(gradient: np.ndarray) -> None:
            self.give(a, gradient)
            whole = b.data.ndim == a.data.ndim
            self.give(b, gradient if whole else self.done(gradient.sum(axis=1)))

        return self.keep(self.done(a.data + b.data), back)

    def multiply(self, a: Value, b: Value) -> Value:
        """Multiply elementwise."""

        def back(gradient: np.ndarray) -> None:
            self.give(a, self.done(gradient * b.data))
            self.give(b, self.done(gradient * a.data))

        return self.keep(self.done(a.data * b.data), back)

    def scale(self, a: Value, factor: float) -> Value:
        """Multiply by a constant."""
        return self.keep(
            self.done(a.data * self.work(factor)),
            lambda gradient: self.give(a, self.done(gradient * self.work(factor))),
        )

    def silu(self, a: Value) -> Value:
        """x / (1 + exp(-x)), rounded once."""
        with np.errstate(over="ignore"):  # exp(-x) may be infinite; the share is 0 then
            share = 1 / (1 + np.exp(-a.data))

        def back(gradient: np.ndarray) -> None:
            slope = share * (1 + a.data * (1 - share))
            self.give(a, self.done(gradient * slope))

        return self.keep(self.done(a.data * share), back)

    def rms_norm(self, a: Value, eps: float) -> Value:
        """Divide by the root mean square over the last axis, rounded once."""
        mean = self.off(np.mean(np.square(a.data), axis=-1, keepdims=True))
        inverse = 1 / np.sqrt(mean + self.work(eps))
        normal = a.data * inverse

        def back(gradient: np.ndarray) -> None:
            along = self.off(np.mean(gradient * normal, axis=-1, keepdims=True))
            self.give(a, self.done(inverse * (gradient - normal * along)))

        return self.keep(self.done(normal), back)

    def attention(self, qkv: Value, heads: int, cos_sin: Optional[CosSin]) -> Value:
        """Attend over all positions: (M, B, T, 3 * D), [q | k | v], to (M, B, T, D)."""
        *rows, length, width = qkv.data.shape
        size = width // 3 // heads
        parts = qkv.data.reshape(*rows, length, 3, heads, size).transpose(3, 0, 1, 4, 2, 5)
        query, key, value = parts
        if cos_sin is not None:
            query, key = (self.done(rotate(part, *cos_sin)) for part in (query, key))
        factor = self.work(1 / np.sqrt(size))
        scores = self._inside(self._product(query, key.swapaxes(-1, -2)) * factor, "rounded")
        exponentials = self.off(np.exp(scores - scores.max(axis=-1, keepdims=True)))
        total = self.off(exponentials.sum(axis=-1, keepdims=True))
        shares = self._inside(exponentials / total, "rounded")
        if self.dtype in ("float32", "float64"):
            mixed = self.done(self._product(shares, value))
        else:
            flash = self._attentions == "flash"
            meeting = np.where(flash, self.round(exponentials), shares)
            mixed = self._product(meeting, value)
            mixed = self.done(np.where(flash, mixed / total, mixed))

        def back(gradient: np.ndarray) -> None:
            gradient = gradient.reshape(*rows, length, heads, size).transpose(0, 1, 3, 2, 4)
            used = self._inside(shares, "flash")
            to_value = self.round(self._product(used.swapaxes(-1, -2), gradient))
            to_shares = self._product(gradient, value.swapaxes(-1, -2))
            along = self.off(np.sum(mixed * gradient, axis=-1, keepdims=True))
            to_scores = self.off(shares * (to_shares - along) * factor)
            to_scores = self._inside(to_scores, "flash", "rounded")
            to_query = self.round(self._product(to_scores, key))
            to_key = self.round(self._product(to_scores.swapaxes(-1, -2), query))
            if cos_sin is not None:
                to_query, to_key = (
                    self.done(rotate(part, cos_sin[0], -cos_sin[1])) for part in (to_query, to_key)
                )
            whole = np.stack([to_query, to_key, to_value]).transpose(1, 2, 4, 0, 3, 5)
            self.give(qkv, whole.reshape(qkv.data.shape))

        return self.keep(mixed.transpose(0, 1, 3, 2, 4).reshape(*rows, length, -1), back)

    def _inside(self, x: np.ndarray, *kinds: str) -> np.ndarray:
        """Round something inside attention on the machines that do."""
        if self.dtype in ("float32", "float64"):
            return x
        return np.where(np.isin(self._attentions, kinds), self.round(x), x)

    # What moves numbers without changing them -------------------------------------------------

    def part(self, a: Value, key: Tuple) -> Value:
        """Take a part by a NumPy index without repetitions."""

        def back(gradient: np.ndarray) -> None:
            whole = np.zeros_like(a.data)
            whole[key] = gradient
            self.give(a, whole)

        return self.keep(a.data[key], back)

    def swap(self, a: Value) -> Value:
        """Exchange the last two axes."""
        return self.keep(
            a.data.swapaxes(-1, -2), lambda gradient: self.give(a, gradient.swapaxes(-1, -2))
        )

    def look_up(self, table: Value, ids: np.ndarray) -> Value:
        """Take rows (B, S) of a float32 table, cast; the result is (M, B, S, D)."""
        used = self.cast(table)

        def back(gradient: np.ndarray) -> None:
            whole = np.zeros((self.machines, *used.data.shape), dtype=gradient.dtype)
            for rows, given in zip(whole, gradient):
                np.add.at(rows, ids, given)
            self.give(used, self.done(whole))

        return self.keep(self.on_each(used.data[ids]), back)

    def on_each(self, x: np.ndarray) -> np.ndarray:
        """Give an array to each machine."""
        return np.broadcast_to(x, (self.machines, *x.shape))

    def put_before(self, vectors: Value, positions: int, tokens: Value) -> Value:
        """Put (B, n) vectors, filled with zeros to (B, positions, D), before (M, B, S, D)."""
        rows, size = tokens.data.shape[1], tokens.data.shape[-1]
        count = vectors.data.shape[-1]
        filled = np.zeros((rows, positions * size), dtype=tokens.data.dtype)
        filled[:, :count] = vectors.data

        def back(gradient: np.ndarray) -> None:
            before = gradient[:, :, :positions].reshape(self.machines, rows, -1)
            self.give(vectors, before[..., :count])
            self.give(tokens, gradient[:, :, positions:])

        before = self.on_each(filled.reshape((rows, positions, size)))
        return self.keep(np.concatenate([before, tokens.data], axis=2), back)


def _column_norms(w: np.ndarray) -> np.ndarray:
    """Give the Euclidean norms over the second-last axis."""
    norms: np.ndarray = np.sqrt(np.einsum("...km,...km->...m", w, w))
    return norms


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate pairs (i, i + n/2) of the last axis by angles given as (T, n) cos and sin."""
    half = x.shape[-1] // 2
    return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin
