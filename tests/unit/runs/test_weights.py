"""Files of weights: headers that lie, and numbers that are none."""

import json
from pathlib import Path
from typing import Any, Dict

import mlx.core as mx
import numpy as np
import pytest

from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import CheckpointError
from mlx_trm.models import TRM, TRMConfig
from mlx_trm.runs.weights import check_finite, load_weights, read_safetensors


def file_of(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, *shape: int, dtype: str = "F32") -> Dict[str, Any]:
    """What a header says of an array."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HOSTILE = {
    "overlap": ({f"w{i}": entry(0, 8, 2) for i in range(100)}, 8, "shares bytes"),
    "part overlap": ({"a": entry(0, 8, 2), "b": entry(4, 12, 2)}, 12, "shares bytes"),
    "gap": ({"a": entry(0, 4, 1), "b": entry(8, 12, 1)}, 12, "behind a gap"),
    "first gap": ({"a": entry(4, 8, 1)}, 8, "behind a gap"),
    "rest": ({"a": entry(0, 4, 1)}, 12, "8 bytes follow"),
    "nothing": ({}, 4, "4 bytes follow"),
    "dimensions": ({"a": entry(0, 4, *[1] * 100_000)}, 4, "100,000 dimensions"),
    "negative": ({"a": entry(0, 4, -1)}, 4, "malformed"),
    "fraction": ({"a": {**entry(0, 4, 1), "shape": [1.0]}}, 4, "malformed"),
    "yes": ({"a": {**entry(0, 4, 1), "shape": [True]}}, 4, "malformed"),
    "more": ({"a": {**entry(0, 4, 1), "extra": [[]]}}, 4, "malformed"),
    "turned": ({"a": entry(4, 0, 1)}, 4, "has -4 bytes"),
    "large": ({"a": entry(0, 4, 2**31)}, 4, "has 4 bytes"),
    "digits": (
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
        4,
        "digits|has 4 bytes",
    ),
    "twice": (b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4, 1)).encode(),) * 2), 4, "twice"),
    "deep": (b'{"__metadata__":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, 0, "deeply"),
    "deep entry": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", 0, "deeply"),
    "metadata": ({"__metadata__": {"a": 1}}, 0, "no text"),
    "list": ([], 0, "malformed"),
    "dtype": ({"a": entry(0, 4, 1, dtype="F8")}, 4, "which MLX does not read"),
    "long": (b" " * ((1 << 23) + 1) + b"{}", 0, "its header has"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_lies(tmp_path: Path, name: str) -> None:
    """It is refused in one line before MLX sees it."""
    header, size, says = HOSTILE[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of(header, b"\0" * size))
    with pytest.raises(ValueError, match=says) as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_what_mlx_writes(tmp_path: Path) -> None:
    """Any dtypes and shapes, an empty array, none at all."""
    path = tmp_path / "a.safetensors"
    arrays = {"a": mx.ones((2, 3)), "b": mx.zeros((0, 4)), "c": mx.array(3, dtype=mx.int8)}
    for held in (arrays, {"d": mx.ones((1,), dtype=mx.bfloat16)}):
        mx.save_safetensors(str(path), held, {"x": "y"})
        read, metadata = read_safetensors(path)
        assert {k: v.shape for k, v in read.items()} == {k: v.shape for k, v in held.items()}
        assert metadata["x"] == "y"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_weights_that_are_not_finite(value: float, dtype: mx.Dtype) -> None:
    """They are named, and the model stays as it was; whole numbers are not looked at."""
    config = TRMConfig(hidden_size=8, num_heads=2, swiglu_multiple=8, L_layers=1)
    config.puzzle_emb_ndim = config.puzzle_emb_len = 0
    model = TRM(config, TaskSpec(vocab_size=3, seq_len=4))
    before = np.array(model.lm_head.weight)
    arrays = {"lm_head.weight": mx.full((3, 8), value, dtype=dtype)}
    with pytest.raises(CheckpointError, match="a: 1 of 1 arrays hold .*: lm_head.weight;"):
        load_weights(model, arrays, "a", partial=True)
    assert np.array_equal(np.array(model.lm_head.weight), before)
    check_finite({"n": mx.array([1, 2]), "empty": mx.zeros((0,))}, "a")


def test_the_last_of_many_numbers(monkeypatch: Any) -> None:
    """A large array is looked at in parts, all of them."""
    monkeypatch.setattr("mlx_trm.runs.weights._LOOKED_AT", 7)
    values = np.zeros((5, 5), np.float32)
    check_finite({"a": mx.array(values)}, "x")
    values[-1, -1] = np.nan
    with pytest.raises(CheckpointError, match="1 of 1 arrays"):
        check_finite({"a": mx.array(values)}, "x")
