"""Sizes that a file declares, and numbers in a batch, are looked at before they cost anything."""

from typing import Any

import mlx.core as mx
import pytest

import mlx_trm as trm
from mlx_trm.config.loading import config_from_dict
from mlx_trm.errors import ConfigError
from mlx_trm.models import build_model
from mlx_trm.models.carry import Batch, check_batch
from mlx_trm.models.network import MOST_BLOCKS

SPEC = trm.TaskSpec(vocab_size=11, seq_len=9, num_puzzle_identifiers=3)


@pytest.mark.parametrize("name", ["trm", "trm_singlez", "trm_hier6", "hrm", "transformers_baseline",
                                  "trm_symbols", "trm_grid"])  # fmt: skip
@pytest.mark.parametrize("key", ["L_layers", "H_layers", "H_cycles", "L_cycles"])
def test_more_blocks_than_make_sense(name: str, key: str) -> None:
    """Layers or cycles: the configuration is refused, and names the setting."""
    model = {"name": name, key: 100_000_000}
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"task": {"name": "sudoku"}, "model": model})
    assert f"model.{key}" in str(caught.value)


def test_the_papers_sizes_are_far_below() -> None:
    """3 x (6 + 1) x 2 blocks, and ten times as many layers."""
    config = trm.TRMConfig(L_layers=20)
    assert not config.problems() and 3 * 7 * 20 < MOST_BLOCKS


@pytest.mark.parametrize("change", [{"hidden_size": 1 << 26, "num_heads": 1},
                                    {"puzzle_emb_len": 1 << 30}])  # fmt: skip
def test_latents_that_no_row_can_have(change: Any) -> None:
    """Rotary tables would be made at once, before a weight's shape is compared."""
    config = trm.TRMConfig(**{"hidden_size": 64, "num_heads": 1, **change})
    with pytest.raises(ConfigError, match="model: latents of .* are too large"):
        build_model(config, SPEC)


@pytest.mark.parametrize("change", [{"register_tokens": 1 << 24}, {"symbol_size": 1 << 22}])
def test_latents_of_symbols_that_no_row_can_have(change: Any) -> None:
    """Weights of few numbers may belong to latents of very many."""
    small = {"symbol_size": 1, "symbols": 9, "token_inner": 1, "inner": 1, "register_tokens": 1}
    model = {"name": "trm_symbols", **small, **change}
    config = config_from_dict({"task": {"name": "sudoku"}, "model": model}).model
    with pytest.raises(ConfigError, match="model: latents of .* are too large"):
        build_model(config, SPEC)


@pytest.fixture(name="model", scope="module")
def make_model() -> Any:
    """A small model with a puzzle table of three rows."""
    config = trm.TRMConfig(hidden_size=16, num_heads=2, swiglu_multiple=8, L_layers=1, H_cycles=1,
                           L_cycles=1, puzzle_emb_len=1, halt_max_steps=2)  # fmt: skip
    return trm.TRM(config, SPEC).eval()


@pytest.mark.parametrize(
    "name, value",
    [("inputs", 11), ("inputs", -1), ("inputs", 2**30), ("labels", 11), ("labels", -1),
     ("puzzle_identifiers", 3), ("puzzle_identifiers", -1)],
)  # fmt: skip
def test_numbers_that_the_model_does_not_know(model: Any, name: str, value: int) -> None:
    """MLX would read memory that is not its own."""
    batch = trm.random_batch(SPEC, size=2, seed=0)
    carry = model.initial_carry(batch)
    wrong = batch._replace(**{name: mx.full(getattr(batch, name).shape, value, dtype=mx.int32)})
    with pytest.raises(ValueError, match=rf"batch\.{name} has {value}, the model knows 0 to"):
        model(carry, wrong)
    ignored = batch._replace(labels=mx.full(batch.labels.shape, -100, dtype=mx.int32))
    assert model(carry, ignored)[1].logits.shape == (2, 9, 11)


def test_a_traced_batch_is_not_looked_at() -> None:
    """A step can still be compiled: while it is traced there are no numbers to look at."""

    def look(values: mx.array) -> mx.array:
        check_batch(Batch(values, values, values), SPEC, True)
        return values

    wrong = mx.full((2, 3), 99, dtype=mx.int32)
    assert mx.vmap(look)(wrong).shape == (2, 3)
    with pytest.raises(ValueError, match="batch.inputs has 99"):
        look(wrong)


def test_dimensions_of_a_file() -> None:
    """Identifiers are int32: what does not fit is refused, and said in a line."""
    for value in (2**31, 10**400):
        with pytest.raises(ValueError, match="num_puzzle_identifiers must be at most") as caught:
            trm.TaskSpec.read({"vocab_size": 3, "seq_len": 4, "num_puzzle_identifiers": value,
                               "pad_id": 0, "blank_identifier_id": 0})  # fmt: skip
        assert len(str(caught.value)) < 200
