"""The network in plain NumPy, float64, written from its formulas; and small models to hold it to.

Nothing here calls the package's layers: a test that restates a recursion with ``Plain`` shares with
the model its weights and nothing else.
"""

import dataclasses
from typing import Any, Optional, Tuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

import mlx_trm as trm
from mlx_trm.models import RecursiveModel, build_model
from mlx_trm.models.carry import Batch, Carry, random_batch
from mlx_trm.models.losses import act_loss

SPEC = trm.TaskSpec(vocab_size=7, seq_len=12, num_puzzle_identifiers=5)
_SHARED = {
    "hidden_size": 16,
    "num_heads": 2,
    "swiglu_multiple": 8,
    "puzzle_emb_ndim": 20,
    "halt_max_steps": 4,
    "forward_dtype": "float32",
}
SMALL = {
    "hrm": trm.HRMConfig(H_layers=1, L_layers=2, H_cycles=2, L_cycles=3, **_SHARED),
    "trm": trm.TRMConfig(L_layers=2, H_cycles=2, L_cycles=2, puzzle_emb_len=3, **_SHARED),
    "trm_singlez": trm.TRMSingleZConfig(
        L_layers=2, H_cycles=2, L_cycles=2, puzzle_emb_len=3, **_SHARED
    ),
    "trm_hier6": trm.TRMHier6Config(L_layers=1, H_cycles=2, puzzle_emb_len=3, **_SHARED),
    "transformers_baseline": trm.TransformersBaselineConfig(H_layers=2, **_SHARED),
}
VARIANTS = sorted(set(SMALL) - {"trm"})


def small(name: str, seed: int = 0, **changes: Any) -> RecursiveModel:
    """A tiny model whose Q head and puzzle table are random, so that they matter."""
    model = build_model(dataclasses.replace(SMALL[name], **changes), SPEC, seed=seed)
    size = model.config.hidden_size
    model.q_head.weight = mx.random.normal((2, size), key=mx.random.key(1)) * 0.3
    model.q_head.bias = mx.array([0.1, -0.1])
    if model.config.puzzle_emb_ndim:
        shape = model.puzzle_emb.weights.shape
        model.puzzle_emb.weights = mx.random.normal(shape, key=mx.random.key(2))
    return model


def begun(model: RecursiveModel, rows: int = 3, seed: int = 0) -> Tuple[Carry, Optional[mx.array]]:
    """A carry whose rows have all been refilled, and their puzzle vectors."""
    batch = random_batch(SPEC, rows, seed)
    carry = model.begin(model.initial_carry(batch), batch)
    return carry, model.puzzle_rows(carry)


def answer_gradients(model: RecursiveModel, carry: Carry, rows: mx.array) -> dict:
    """Gradients of the loss of one pass, continue target apart, by name; float64."""

    def loss_fn(weights: Any, vectors: mx.array) -> mx.array:
        with model.using(weights):
            _, outputs = model.reason(carry, vectors)
        halted = mx.ones_like(carry.halted)
        return act_loss(outputs, carry.current.labels, halted, carry.steps)[0]

    found = mx.grad(loss_fn, (0, 1))(model.trained_weights(), rows)
    return {name: np.array(value, np.float64) for name, value in tree_flatten(found)}


class Plain:
    """A model's weights as float64 arrays, and the arithmetic they stand for."""

    def __init__(self, model: RecursiveModel) -> None:
        """Copy the weights."""
        self.config = model.config
        self.weights = {n: np.array(v, np.float64) for n, v in tree_flatten(model.parameters())}

    def embed(self, batch: Batch, positions: int) -> np.ndarray:
        """x: the puzzle vector cut into positions, then the tokens, times sqrt(D)."""
        table = self.weights["embed_tokens.embedding_weight"]
        size = table.shape[1]
        x = table[np.array(batch.inputs)]
        if positions:
            vectors = self.weights["puzzle_emb.weights"][np.array(batch.puzzle_identifiers)]
            padded = np.zeros((len(vectors), positions * size))
            padded[:, : vectors.shape[1]] = vectors
            x = np.concatenate([padded.reshape(-1, positions, size), x], axis=1)
        if self.config.pos_encodings == "learned":
            x = (x + self.weights["embed_pos.embedding_weight"]) / np.sqrt(2)
        return x * np.sqrt(size)

    def start(self, name: str, x: np.ndarray) -> np.ndarray:
        """An initial state, the same at every position."""
        return np.broadcast_to(self.weights[name], x.shape)

    def level(self, name: str, state: np.ndarray) -> np.ndarray:
        """Run the blocks of a module, post-norm: mix positions, then features."""
        number = 0
        while f"{name}.layers.{number}.mlp.down_proj.weight" in self.weights:
            block = f"{name}.layers.{number}"
            if f"{block}.mlp_t.down_proj.weight" in self.weights:
                turned = state.swapaxes(1, 2)
                state = _norm(turned + self._swiglu(f"{block}.mlp_t", turned)).swapaxes(1, 2)
            else:
                state = _norm(state + self._attention(f"{block}.self_attn", state))
            state = _norm(state + self._swiglu(f"{block}.mlp", state))
            number += 1
        assert number, f"the model has no module {name}"
        return state

    def read(self, state: np.ndarray, positions: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits, q_halt, q_continue."""
        q = state[:, 0] @ self.weights["q_head.weight"].T + self.weights["q_head.bias"]
        return state[:, positions:] @ self.weights["lm_head.weight"].T, q[:, 0], q[:, 1]

    def _swiglu(self, name: str, x: np.ndarray) -> np.ndarray:
        gate, up = np.split(x @ self.weights[f"{name}.gate_up_proj.weight"].T, 2, axis=-1)
        return gate / (1 + np.exp(-gate)) * up @ self.weights[f"{name}.down_proj.weight"].T

    def _attention(self, name: str, x: np.ndarray) -> np.ndarray:
        query, key, value = np.split(x @ self.weights[f"{name}.qkv_proj.weight"].T, 3, axis=-1)
        width = x.shape[-1] // self.config.num_heads
        mixed = np.zeros_like(x)
        for head in range(self.config.num_heads):
            part = slice(head * width, (head + 1) * width)
            q, k, v = query[..., part], key[..., part], value[..., part]
            if self.config.pos_encodings == "rope":
                q, k = _rotate(q), _rotate(k)
            scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(width))
            mixed[..., part] = scores / scores.sum(-1, keepdims=True) @ v
        return mixed @ self.weights[f"{name}.o_proj.weight"].T


def _norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def _rotate(x: np.ndarray) -> np.ndarray:
    """Turn each pair (i, i + half a head) at position t by t / 10000^(2i / head)."""
    positions, width = x.shape[-2:]
    half = width // 2
    angles = np.outer(np.arange(positions), 10000.0 ** (-2 * np.arange(half) / width))
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
        ],
        axis=-1,
    )


def assert_step(model: RecursiveModel, states: Any, logits: Any, q_halt: Any, q_go: Any) -> None:
    """Compare one pass of the model from a begun carry with arrays made another way."""
    carry, rows = begun(model)
    latents, outputs = model.reason(carry, rows)
    assert len(latents) == len(states)
    pairs = [*zip(latents, states), (outputs.logits, logits)]
    pairs += [(outputs.q_halt, q_halt), (outputs.q_continue, q_go)]
    for ours, theirs in pairs:
        np.testing.assert_allclose(np.array(ours), theirs, atol=5e-5)
