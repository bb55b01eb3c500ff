"""Checkpoints: what goes in comes out, damage is named, and a failed save harms nothing."""

import json
import math
import os
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import mlx_trm as trm
from mlx_trm.errors import CheckpointError
from mlx_trm.runs.history import prune_checkpoints
from mlx_trm.runs.layout import find_checkpoint, list_checkpoints
from mlx_trm.runs.metrics import MetricsLog
from mlx_trm.runs.progress import RunProgress
from mlx_trm.runs.state import record_progress, write_state

OVERRIDES = [
    "task.size=4",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.swiglu_multiple=16",
    "model.puzzle_emb_len=1",
    "model.puzzle_emb_ndim=12",
    "model.forward_dtype=float32",
]
SPEC = trm.TaskSpec(vocab_size=6, seq_len=16)


@pytest.fixture(name="config")
def make_config():
    return trm.load_config("sudoku_tiny.yaml", OVERRIDES)


@pytest.fixture(name="model")
def make_model(config):
    model = trm.build_model(config.model, SPEC, seed=3)
    model.puzzle_emb.weights = mx.random.normal((1, 12), key=mx.random.key(0))
    return model


@pytest.fixture(name="run")
def make_run(tmp_path, config, model):
    average = tree_map(lambda array: array + 0.5, model.trained_weights())
    trm.save_checkpoint(tmp_path / "run", model, config, 7, average)
    return tmp_path / "run"


def arrays(model) -> dict:
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


def test_raw_and_averaged_weights_come_back_exactly(run, model, config):
    before = arrays(model)
    raw = trm.load_checkpoint(run, weights="raw")
    assert raw.weights == "raw" and raw.step == 7 and raw.spec == SPEC
    assert raw.config == config
    assert not raw.model.training
    for name, value in arrays(raw.model).items():
        assert np.array_equal(value, before[name]), name
    averaged = trm.load_checkpoint(run)
    assert averaged.weights == "ema"
    buffers = {"H_init", "L_init", "puzzle_emb.weights"}
    for name, value in arrays(averaged.model).items():
        shift = 0 if name in buffers else 0.5
        np.testing.assert_array_equal(value, before[name] + np.float32(shift), err_msg=name)


def test_without_an_average_the_raw_weights_are_given(tmp_path, model, config):
    trm.save_checkpoint(tmp_path, model, config, 1)
    found = trm.load_checkpoint(tmp_path)
    assert found.weights == "raw"
    assert np.array_equal(arrays(found.model)["lm_head.weight"], arrays(model)["lm_head.weight"])


def test_what_may_be_named_as_a_run(run):
    newest = run / "step_7"
    for path in (run, newest, run / "latest", str(run)):
        assert find_checkpoint(path).resolve() == newest.resolve()
    (run / "latest").unlink()
    assert find_checkpoint(run) == newest


def test_latest_is_relative_so_that_a_run_can_be_moved(run, tmp_path):
    shutil.move(str(run), str(tmp_path / "elsewhere"))
    assert trm.load_checkpoint(tmp_path / "elsewhere").step == 7


def test_newer_checkpoints_take_over_and_old_ones_go(run, model, config):
    for step in (9, 30, 100):
        trm.save_checkpoint(run, model, config, step)
    assert trm.load_checkpoint(run).step == 100
    assert [path.name for path in list_checkpoints(run)] == [
        "step_7",
        "step_9",
        "step_30",
        "step_100",
    ]
    prune_checkpoints(run, keep=2)
    assert [path.name for path in list_checkpoints(run)] == ["step_30", "step_100"]
    assert trm.load_checkpoint(run).step == 100


def test_a_checkpoint_saved_just_before_a_kill_counts(run, model, config):
    """Saved, but the link not moved yet: what is newest is found, and the next save heals it."""
    trm.save_checkpoint(run, model, config, 9)
    (run / "latest").unlink()
    (run / "latest").symlink_to("step_7")
    assert find_checkpoint(run).name == "step_9"
    trm.save_checkpoint(run, model, config, 10)
    assert find_checkpoint(run).name == "step_10" == (run / "latest").resolve().name
    assert find_checkpoint(run / "step_7").name == "step_7"


def test_saving_a_step_again_replaces_it(run, model, config):
    model.lm_head.weight = model.lm_head.weight * 0
    trm.save_checkpoint(run, model, config, 7)
    assert not arrays(trm.load_checkpoint(run).model)["lm_head.weight"].any()
    assert sorted(path.name for path in run.iterdir()) == ["latest", "step_7"]


def test_a_save_that_fails_leaves_the_old_ones_and_no_rest(run, model, config, monkeypatch):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlx_trm.runs.checkpoint.os.fsync", full)
    with pytest.raises(CheckpointError, match="could not be written .*No space left") as caught:
        trm.save_checkpoint(run, model, config, 8)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in run.iterdir()) == ["latest", "step_7"]
    assert trm.load_checkpoint(run).step == 7


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    else:
        path.write_bytes(b"\x80\x02}q\x00." * 50)


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "flipped", "other bytes"])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "config.yaml"])
def test_damage_is_named(run, name, how):
    damage(run / "step_7" / name, how)
    with pytest.raises(CheckpointError) as caught:
        trm.load_checkpoint(run)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["truncated", "empty", "other bytes"])
def test_a_damaged_state_is_named(run, how):
    damage(run / "step_7" / "state.json", how)
    with pytest.raises(CheckpointError, match=r"state\.json: damaged"):
        trm.load_checkpoint(run)


def test_files_that_are_no_safetensors_though_the_checksum_agrees(run):
    from hashlib import sha256

    state = json.loads((run / "step_7" / "state.json").read_text())
    (run / "step_7" / "model.safetensors").write_bytes(b"not weights")
    state["sha256"]["model.safetensors"] = sha256(b"not weights").hexdigest()
    write_state(run / "step_7", state)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as safetensors"):
        trm.load_checkpoint(run, weights="raw")


def test_a_format_of_the_future_is_refused(run):
    state = json.loads((run / "step_7" / "state.json").read_text())
    state["format"] = 99
    (run / "step_7" / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="format 99, this version of mlx_trm reads 1"):
        trm.load_checkpoint(run)


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("step", -1, "step must be a whole number from 0 up"),
        ("step", True, "step must be a whole number from 0 up"),
        ("sha256", {}, "sha256 must name model.safetensors, config.yaml, ema.safetensors"),
        ("sha256", [], "sha256 must name model.safetensors, config.yaml, ema.safetensors"),
        ("sha256", "model.safetensors", "sha256 must name model.safetensors"),
        ("sha256", "config.yaml", "sha256 must name model.safetensors, config.yaml"),
        ("sha256", "ema.safetensors", "sha256 must name .*, ema.safetensors"),
    ],
)
def test_a_state_that_leaves_a_file_or_a_sign_out(run, key, value, says):
    """A word beside ``sha256`` is the file that is left out."""
    state = json.loads((run / "step_7" / "state.json").read_text())
    if isinstance(value, str):
        del state[key][value]
    else:
        state[key] = value
    (run / "step_7" / "state.json").write_text(json.dumps(state))
    for read in (trm.load_checkpoint, trm.read_weights):
        with pytest.raises(CheckpointError, match=rf"state\.json: damaged .*{says}") as caught:
            read(run)
        assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_all_named(run, tmp_path, config):
    other = trm.load_config("sudoku_tiny.yaml", OVERRIDES + ["model.hidden_size=32"])
    mixed = tmp_path / "mixed"
    trm.save_checkpoint(mixed, trm.build_model(other.model, SPEC), config, 1)
    with pytest.raises(CheckpointError) as caught:
        trm.load_checkpoint(mixed)
    message = str(caught.value)
    assert "weights do not fit the model" in message and "\n" not in message
    assert "H_init is (32,), the model needs (16,)" in message


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "no such run or checkpoint folder"),
        (lambda path: path.mkdir(), "holds no checkpoint"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: (path / "step_3").mkdir(parents=True), "holds no checkpoint"),
    ],
)
def test_what_is_no_run(tmp_path, make, message):
    make(tmp_path / "thing")
    with pytest.raises(CheckpointError, match=message):
        trm.load_checkpoint(tmp_path / "thing")


def test_weights_must_be_ema_or_raw(run):
    with pytest.raises(ValueError, match="'ema' or 'raw'"):
        trm.load_checkpoint(run, weights="best")


def test_a_killed_save_is_not_taken_for_a_checkpoint(run):
    shutil.copytree(run / "step_7", run / f".step_9.tmp-{os.getpid()}")
    (run / "step_11").mkdir()
    assert trm.load_checkpoint(run).step == 7
    (run / "latest").unlink()
    assert trm.load_checkpoint(run).step == 7


@pytest.mark.parametrize(
    "error, words, advice",
    [
        (OSError(28, "No space left on device"), "No space left on device", True),
        (RuntimeError("[save_safetensors] Failed to open file x"), "Failed to open", True),
        (RuntimeError("[metal::malloc] Attempting to allocate 9 bytes"), "out of memory", False),
        (RuntimeError("something odd"), "RuntimeError: something odd", False),
    ],
)
def test_what_failed_while_saving_is_called_what_it_is(
    tmp_path, config, model, monkeypatch, error, words, advice
):
    """The disk is blamed for what the disk did only."""

    def fail(*_):
        raise error

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(CheckpointError) as caught:
        trm.save_checkpoint(tmp_path / "run", model, config, 7)
    assert words in str(caught.value) and ("free some space" in str(caught.value)) == advice
    assert "earlier checkpoints are untouched" in str(caught.value)


def test_a_state_holds_numbers_of_json_only(run):
    """Neither is NaN written, nor is it read."""
    state = json.loads((run / "step_7" / "state.json").read_text(encoding="utf-8"))
    before = (run / "step_7" / "state.json").read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_state(run / "step_7", {**state, "progress": {"x": float("nan")}})
    with pytest.raises(CheckpointError, match="state.json: cannot be written"):
        record_progress(run / "step_7", {"x": float("inf")})
    assert (run / "step_7" / "state.json").read_bytes() == before
    for word in ("NaN", "Infinity", "-Infinity"):
        text = before.decode().replace('"progress": null', f'"progress": {{"x": {word}}}')
        (run / "step_7" / "state.json").write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=f"state.json: damaged .*{word} is no number"):
            trm.load_checkpoint(run)


def test_sums_that_are_not_finite_are_saved_as_null(tmp_path):
    """And their mean is null in the log of the run that goes on, as it would have been."""
    log = MetricsLog(tmp_path / "log.jsonl", 4, 2, 9)
    sums = {"count": 1.0, "lm_loss": math.inf, "accuracy": math.nan, "steps": 3.0}
    log.add(1, {name: mx.array(value) for name, value in sums.items()}, 0.1)
    state = json.loads(json.dumps(log.state(), allow_nan=False))
    assert state["sums"] == {"count": 1.0, "lm_loss": None, "accuracy": None, "steps": 3.0}
    RunProgress.read({"log": state})
    other = MetricsLog(tmp_path / "other.jsonl", 4, 2, 9)
    other.restore(state)
    other.add(2, {name: mx.array(1.0 if name != "steps" else 3.0) for name in sums}, 0.1)
    line = json.loads((tmp_path / "other.jsonl").read_text(encoding="utf-8"))
    assert line["lm_loss"] is None and line["accuracy"] is None and line["steps"] == 3.0
