"""``python -m mlx_trm.parity``: its table, its JSON and its exit codes."""

import json
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from paths import REFERENCE

from mlx_trm.parity import main

FOLDER = REFERENCE / "cuda"


def test_a_pass_is_exit_code_0_and_the_json_has_every_row(tmp_path, capsys):
    output = tmp_path / "parity.json"
    only = ["--only", "trm_nopuzzle_f32", "--only", "trm_mlp_b*"]
    assert main([str(FOLDER), *only, "--device", "cpu", "--json", str(output)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(output.read_text())
    assert {row["case"] for row in rows} == {"trm_nopuzzle_f32", "trm_mlp_bf16"}
    keys = {"case", "quantity", "error", "tolerance", "typical", "passed"}
    assert all(set(row) == keys for row in rows)
    assert all(row["passed"] and row["error"] <= row["tolerance"] for row in rows)
    assert all(row["typical"] is None or row["typical"] < 2 for row in rows)
    assert f"2 cases, {len(rows)} quantities, 0 missed" in printed
    assert "train.grad" in printed and "MISS" not in printed


def test_a_weight_row_scaled_by_one_percent_is_exit_code_1(tmp_path, capsys):
    arrays, metadata = mx.load(str(FOLDER / "trm_att_rope_f32.safetensors"), return_metadata=True)
    name = "init.inner.L_level.layers.0.mlp.down_proj.weight"
    weight = np.array(arrays[name])
    weight[0] *= 1.01
    arrays[name] = mx.array(weight)
    mx.save_safetensors(str(tmp_path / "trm_att_rope_f32.safetensors"), arrays, metadata)
    assert main([str(tmp_path), "--device", "cpu"]) == 1
    assert "eval.logits" in capsys.readouterr().out


def test_a_model_not_built_is_a_miss_unless_left_out(tmp_path, capsys):
    arrays, metadata = mx.load(str(FOLDER / "trm_nopuzzle_f32.safetensors"), return_metadata=True)
    mx.save_safetensors(str(tmp_path / "known.safetensors"), arrays, metadata)
    metadata["model"] = "another"
    mx.save_safetensors(str(tmp_path / "other.safetensors"), arrays, metadata)
    assert main([str(tmp_path), "--device", "cpu"]) == 1
    assert "not supported" in capsys.readouterr().out
    assert main([str(tmp_path), "--device", "cpu", "--only", "known"]) == 0


@pytest.mark.parametrize("content", [None, b"", b"not safetensors" * 9])
def test_what_cannot_be_read_is_one_line_and_exit_code_2(tmp_path, content):
    folder = tmp_path / "recordings"
    if content is not None:
        folder.mkdir()
        (folder / "bad.safetensors").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "mlx_trm.parity", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "recordings" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
