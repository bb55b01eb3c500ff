"""Names and settings of the reference."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import CheckpointError
from mlx_trm.models import TRM, TRMConfig
from mlx_trm.runs.weights import load_weights
from mlx_trm.upstream.names import from_upstream_names, strip_prefix, upstream_model_config

SETTINGS = {
    "hidden_size": 16,
    "num_heads": 2,
    "expansion": 4,
    "H_cycles": 2,
    "L_cycles": 3,
    "H_layers": 0,
    "L_layers": 1,
    "pos_encodings": "none",
    "halt_max_steps": 4,
    "halt_exploration_prob": 0.25,
    "forward_dtype": "float32",
    "puzzle_emb_ndim": 16,
    "puzzle_emb_len": 2,
    "mlp_t": True,
    "no_ACT_continue": True,
    "seq_len": 9,
    "vocab_size": 7,
    "num_puzzle_identifiers": 3,
    "batch_size": 6,
}


@pytest.mark.parametrize("prefix", ["_orig_mod.model.inner.", "model.inner.", "inner.", ""])
def test_prefixes_of_the_wrappers_are_dropped(prefix):
    assert strip_prefix(prefix + "L_level.layers.0.mlp.down_proj.weight") == (
        "L_level.layers.0.mlp.down_proj.weight"
    )


def test_settings_become_a_configuration_and_dimensions():
    config, spec, left = upstream_model_config("trm", {**SETTINGS, "novelty": 1})
    assert isinstance(config, TRMConfig)
    assert (config.hidden_size, config.L_cycles, config.mlp_t) == (16, 3, True)
    assert config.halt_exploration_prob == 0.25 and config.puzzle_emb_len == 2
    assert spec == TaskSpec(vocab_size=7, seq_len=9, num_puzzle_identifiers=3)
    assert left == ["novelty"]


def test_arrays_become_float32():
    state = {"inner.lm_head.weight": mx.array([1.5, -2.0]).astype(mx.bfloat16)}
    ((name, value),) = from_upstream_names(state).items()
    assert name == "lm_head.weight" and value.dtype == mx.float32
    assert np.array(value).tolist() == [1.5, -2.0]


def test_loading_checks_everything_before_it_changes_anything():
    config, spec, _ = upstream_model_config("trm", SETTINGS)
    model = TRM(config, spec)
    before = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    arrays = {name: mx.array(value) + 1 for name, value in before.items()}
    arrays["lm_head.weight"] = mx.zeros((7, 17))
    arrays["novelty"] = mx.zeros((2,))
    del arrays["H_init"]
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, arrays, "weights.safetensors")
    message = str(caught.value)
    assert message.startswith("weights.safetensors: 3 weights do not fit the model")
    assert "missing H_init (16,)" in message and "unexpected novelty (2,)" in message
    assert "lm_head.weight is (7, 17), the model needs (7, 16)" in message
    for name, value in tree_flatten(model.parameters()):
        assert np.array_equal(np.array(value), before[name])


def test_a_part_can_be_loaded():
    config, spec, _ = upstream_model_config("trm", SETTINGS)
    model = TRM(config, spec)
    load_weights(model, {"q_head.bias": mx.array([1.0, 2.0])}, "here", partial=True)
    assert np.array(model.q_head.bias).tolist() == [1, 2]
    assert np.array(model.lm_head.weight).any()
