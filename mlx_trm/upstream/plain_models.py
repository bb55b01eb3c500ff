"""The reference's five models written out once more, in NumPy, on any :class:`Arithmetic`.

They are not what trains or evaluates: ``rounding.py`` runs them, as several machines that round
differently, to find out what rounding does to each recorded quantity. Nothing here is shared with
the MLX models, so that the two check each other.

Shape letters: B batch, S sequence, P puzzle-embedding positions, T = P + S, D hidden, V vocabulary.

Reference: models/recursive_reasoning/*.py, models/losses.py.
"""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import numpy as np

from mlx_trm.models.carry import IGNORE_LABEL_ID
from mlx_trm.upstream.arithmetic import Arithmetic, CosSin, Value

Weights = Mapping[str, Value]
PLAIN_MODELS = ("trm", "trm_singlez", "trm_hier6", "hrm", "transformers_baseline")


class Result(NamedTuple):
    """What a step gives.

    Attributes:
        latents: each (M, B, T, D).
        logits: (M, B, S, V).
        q: (M, B, 2), halt and continue.
    """

    latents: List[Value]
    logits: Value
    q: Value


class PlainModel:
    """One of the reference's models, with an arithmetic. Weights have the reference's names."""

    def __init__(self, config: Any, seq_len: int, arithmetic: Arithmetic) -> None:
        """Prepare a step.

        Args:
            config: settings of the model, ``name`` among them, as the MLX model takes them.
            seq_len: S.
            arithmetic: what computes.
        """
        self.config, self.arithmetic = config, arithmetic
        self.length = config.positions + seq_len
        self._weights: Weights = {}
        self._cos_sin: Optional[CosSin] = None
        if config.attends and config.pos_encodings == "rope":
            self._cos_sin = angles(config.head_dim, self.length, config.rope_theta, arithmetic.work)

    def reason(
        self,
        weights: Weights,
        latents: List[np.ndarray],
        inputs: np.ndarray,
        rows: Optional[Value],
        differentiated: bool = False,
    ) -> Result:
        """Run the recursion once.

        Args:
            weights: by the reference's names.
            latents: after the refill, each (B, T, D); (M, B, T, D) where machines have their own.
            inputs: (B, S) tokens.
            rows: (B, puzzle_emb_ndim) puzzle vectors; None without a puzzle table.
            differentiated: whether gradients of the result will be asked for.
        """
        self._weights = weights
        numbers = self.arithmetic
        numbers.differentiating = differentiated
        x = self._embed(inputs, rows)
        z = [Value(a if a.ndim == 4 else numbers.on_each(a)) for a in latents]
        recursion = {
            "trm": self._trm,
            "trm_singlez": self._singlez,
            "trm_hier6": self._hier6,
            "hrm": self._hrm,
            "transformers_baseline": self._baseline,
        }[self.config.name]
        recursion(z, x, differentiated)
        answer = numbers.part(z[0], np.s_[:, :, self.config.positions :])
        logits = numbers.linear(answer, weights["lm_head.weight"])
        first = numbers.part(z[0], np.s_[:, :, 0])
        q = numbers.linear(first, weights["q_head.weight"], weights["q_head.bias"])
        numbers.differentiating = False
        return Result(z, logits, q)

    # The recursions: z is changed in place; only the last cycle is differentiated ----------------

    def _trm(self, z: List[Value], x: Value, differentiated: bool) -> None:
        for last in self._cycles(differentiated):
            self.arithmetic.differentiating = last
            for _ in range(self.config.L_cycles):
                z[1] = self._level("L_level", z[1], self.arithmetic.add(z[0], x))
            z[0] = self._level("L_level", z[0], z[1])

    def _singlez(self, z: List[Value], x: Value, differentiated: bool) -> None:
        for last in self._cycles(differentiated):
            self.arithmetic.differentiating = last
            for _ in range(self.config.L_cycles):
                z[0] = self._level("L_level", z[0], x)
            z[0] = self._level("L_level", z[0], None)

    def _hier6(self, z: List[Value], x: Value, differentiated: bool) -> None:
        for last in self._cycles(differentiated):
            self.arithmetic.differentiating = last
            for i in range(1, len(z)):
                before = self._total(z[1:])
                z[i] = self._level("L_level", before, self.arithmetic.add(z[0], x))
            z[0] = self._level("L_level", z[0], self._total(z[1:]))

    def _hrm(self, z: List[Value], x: Value, differentiated: bool) -> None:
        for last in self._cycles(differentiated):
            for update in range(self.config.L_cycles):
                self.arithmetic.differentiating = last and update == self.config.L_cycles - 1
                z[1] = self._level("L_level", z[1], self.arithmetic.add(z[0], x))
            z[0] = self._level("H_level", z[0], z[1])

    def _baseline(self, z: List[Value], x: Value, _: bool) -> None:
        z[0] = self._level("H_level", z[0], x)

    def _cycles(self, differentiated: bool) -> List[bool]:
        """Give for each H cycle whether it is differentiated."""
        return [False] * (self.config.H_cycles - 1) + [differentiated]

    def _total(self, latents: List[Value]) -> Value:
        total = latents[0]
        for latent in latents[1:]:
            total = self.arithmetic.add(total, latent)
        return total

    # The parts -----------------------------------------------------------------------------------

    def _embed(self, inputs: np.ndarray, rows: Optional[Value]) -> Value:
        numbers, weights = self.arithmetic, self._weights
        x = numbers.look_up(weights["embed_tokens.embedding_weight"], inputs)
        if rows is not None:
            x = numbers.put_before(numbers.cast(rows), self.config.positions, x)
        if self.config.pos_encodings == "learned":
            table = numbers.cast(weights["embed_pos.embedding_weight"])
            x = numbers.scale(numbers.add(x, table), 0.707106781)
        return numbers.scale(x, self.config.hidden_size**0.5)

    def _level(self, name: str, state: Value, injection: Optional[Value]) -> Value:
        if injection is not None:
            state = self.arithmetic.add(state, injection)
        for layer in range(getattr(self.config, f"{name[0]}_layers")):
            state = self._block(state, f"{name}.layers.{layer}.")
        return state

    def _block(self, x: Value, where: str) -> Value:
        numbers, weights, eps = self.arithmetic, self._weights, self.config.rms_norm_eps
        if self.config.attends:
            qkv = numbers.linear(x, weights[where + "self_attn.qkv_proj.weight"])
            mixed = numbers.attention(qkv, self.config.num_heads, self._cos_sin)
            mixed = numbers.linear(mixed, weights[where + "self_attn.o_proj.weight"])
            x = numbers.rms_norm(numbers.add(x, mixed), eps)
        else:
            x = numbers.swap(x)
            x = numbers.rms_norm(numbers.add(x, self._swiglu(x, where + "mlp_t.")), eps)
            x = numbers.swap(x)
        return numbers.rms_norm(numbers.add(x, self._swiglu(x, where + "mlp.")), eps)

    def _swiglu(self, x: Value, where: str) -> Value:
        numbers, weights = self.arithmetic, self._weights
        both = numbers.linear(x, weights[where + "gate_up_proj.weight"])
        half = both.data.shape[-1] // 2
        gate, up = numbers.part(both, np.s_[..., :half]), numbers.part(both, np.s_[..., half:])
        product = numbers.multiply(numbers.silu(gate), up)
        return numbers.linear(product, weights[where + "down_proj.weight"])


def angles(size: int, length: int, theta: float, work: type) -> CosSin:
    """Give cos and sin, each (T, size), of the rotary angles that the reference has in float32."""
    powers = np.power(float(theta), np.arange(0, size, 2) / size).astype(np.float32)
    half = np.outer(np.arange(length, dtype=np.float32), np.float32(1) / powers)
    whole = np.concatenate([half, half], axis=-1)
    return np.cos(whole).astype(work), np.sin(whole).astype(work)


class Loss(NamedTuple):
    """The loss of a step and its gradients.

    Attributes:
        whole: (M,), the loss.
        q_continue: (M,), the part of the continue target before its factor 0.5; 0 without one.
        to_logits: gradient to the logits, (M, B, S, V).
        to_q: gradient to the Q values, (M, B, 2).
    """

    whole: np.ndarray
    q_continue: np.ndarray
    to_logits: np.ndarray
    to_q: np.ndarray


def plain_loss(
    numbers: Arithmetic,
    result: Result,
    labels: np.ndarray,
    kind: str,
    target: Optional[np.ndarray] = None,
) -> Loss:
    """lm + 0.5 * (q_halt + q_continue), summed over rows, and its gradients.

    Args:
        numbers: what computed the result.
        result: of the step.
        labels: (B, S); IGNORE_LABEL_ID marks positions to skip.
        kind: ``stablemax`` or ``softmax``.
        target: (M, B) of the continue value, or None.
    """
    logits = result.logits.data.astype(np.float64)
    halt, go_on = np.moveaxis(result.q.data.astype(np.float64), -1, 0)
    valid = labels != IGNORE_LABEL_ID
    counts = valid.sum(axis=-1)
    chosen = np.arange(logits.shape[-1]) == np.where(valid, labels, 0)[..., None]
    if kind == "stablemax":
        positive = np.where(logits < 0, 1 / (1 - np.minimum(logits, 0)), logits + 1)
        slope = np.where(logits < 0, np.square(positive), 1.0) / positive
    else:
        positive = np.exp(logits - logits.max(axis=-1, keepdims=True))
        slope = np.ones_like(positive)
    shares = positive / positive.sum(axis=-1, keepdims=True)
    weight = valid / np.maximum(counts, 1)[:, None]
    lm_loss = -np.sum(np.log(np.sum(shares * chosen, axis=-1)) * weight, axis=(-1, -2))
    exact = np.sum((np.argmax(logits, axis=-1) == labels) & valid, axis=-1) == counts
    to_q = np.zeros(result.q.data.shape)
    to_q[..., 0] = 0.5 * (_sigmoid(halt) - exact)
    q_loss = np.sum(np.logaddexp(0, halt) - exact * halt, axis=-1)
    continue_loss = np.zeros_like(q_loss)
    if target is not None:
        to_q[..., 1] = 0.5 * (_sigmoid(go_on) - target)
        continue_loss = np.sum(np.logaddexp(0, go_on) - target * go_on, axis=-1)
    parts: np.ndarray = np.stack([lm_loss, 0.5 * q_loss, 0.5 * continue_loss]).astype(numbers.work)
    parts = numbers.off(parts).astype(np.float64)
    return Loss(
        parts.sum(axis=0),
        2 * parts[2],
        (slope * (shares - chosen) * weight[..., None]).astype(numbers.work),
        to_q.astype(numbers.work),
    )


def continue_target(after: Result, last: np.ndarray) -> np.ndarray:
    """Give the continue target, (M, B), from the step after: HRM's bootstrapped value.

    Args:
        after: of a second pass from the new latents.
        last: (B,) bool, rows in their last allowed step.
    """
    halt, go_on = np.moveaxis(after.q.data.astype(np.float64), -1, 0)
    return _sigmoid(np.where(last, halt, np.maximum(halt, go_on)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.exp(-np.logaddexp(0, -x))
    return result


def as_values(arrays: Mapping[str, np.ndarray], work: type) -> Dict[str, Value]:
    """Wrap weights."""
    return {name: Value(array.astype(work)) for name, array in arrays.items()}
