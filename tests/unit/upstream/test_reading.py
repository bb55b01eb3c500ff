"""Checkpoints of the reference: read, completed, converted, and written back."""

import json
import os
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch_writer as tw  # noqa: E402  # pylint: disable=wrong-import-position
from child_processes import run_python
from paths import REFERENCE

import mlx_trm as trm
from mlx_trm.config.loading import config_from_dict
from mlx_trm.convert import main
from mlx_trm.models import build_model, named_arrays
from mlx_trm.runs.checkpoint import load_checkpoint, save_checkpoint
from mlx_trm.runs.layout import MODEL
from mlx_trm.runs.weights import read_safetensors
from mlx_trm.system.files import owner_name
from mlx_trm.upstream.names import upstream_model_config, upstream_settings
from mlx_trm.upstream.reading import convert_upstream, open_upstream
from mlx_trm.upstream.settings import UPSTREAM_MODELS
from mlx_trm.upstream.torch_files import read_torch

FOLDER = REFERENCE / "checkpoint"
# What the weights of tests/reference/checkpoint/step_7 do not show; see save_checkpoints.py.
UNSEEN = {
    "num_heads": 2,
    "pos_encodings": "rope",
    "H_cycles": 2,
    "L_cycles": 2,
    "puzzle_emb_len": 2,
    "halt_max_steps": 4,
}
# 4x4 Sudoku has the numbers of tokens and cells that the checkpoint's made-up task has.
TASK = {"name": "sudoku", "size": 4}


def settings(tmp_path: Path, **model) -> Path:
    """Write a configuration that leaves open what it does not name."""
    lines = [f"  {name}: {json.dumps(value)}" for name, value in model.items()]
    path = tmp_path / "open.yaml"
    path.write_text("task: {name: sudoku, size: 4}\nmodel:\n" + "\n".join(lines) + "\n")
    return path


def upstream_trm(tmp_path: Path, **changes) -> Path:
    """Write the configuration of the checkpoint in tests/reference/checkpoint."""
    return settings(tmp_path, **{"name": "trm", "forward_dtype": "float32", **UNSEEN, **changes})


def bits(array: mx.array) -> np.ndarray:
    """The bits of an array of floats."""
    return np.array(array.view(mx.uint32 if array.dtype == mx.float32 else mx.uint16))


def small(name: str, **changes) -> trm.RecursiveModel:
    """A model whose SwiGLU has the reference's sizes, with weights unlike each other."""
    values = {"name": name, "hidden_size": 16, "num_heads": 2, "expansion": 1, **changes}
    config = config_from_dict({"task": TASK, "model": values})
    model = build_model(config.model, trm.TaskSpec(6, 16, 3), seed=3)
    if model.config.puzzle_emb_ndim:
        model.puzzle_emb.weights = mx.random.normal(model.puzzle_emb.weights.shape)
    return model


def as_numpy(model: trm.RecursiveModel) -> dict:
    """A model's arrays by name."""
    return {name: np.array(array) for name, array in named_arrays(model.parameters())}


def test_a_checkpoint_that_torch_wrote_gives_the_reference_s_logits(tmp_path):
    """Compiled names, averaged weights and bfloat16 states; two steps one after the other."""
    path = FOLDER / "step_7"
    model = trm.load_upstream_checkpoint(path, upstream_trm(tmp_path))
    recorded, _ = read_safetensors(FOLDER / "logits.safetensors")
    batch = trm.Batch(*(recorded[f"batch.{name}"] for name in trm.Batch._fields))
    carry = model.initial_carry(batch)
    for step in range(2):
        carry, outputs = model(carry, batch)
        for name, ours in (("logits", outputs.logits), ("q_halt_logits", outputs.q_halt)):
            error = mx.max(mx.abs(ours - recorded[f"step{step}.{name}"])).item()
            assert error < 1e-4, (step, name)
    other = trm.load_upstream_checkpoint(path, upstream_trm(tmp_path, L_cycles=3))
    _, outputs = other(other.initial_carry(batch), batch)
    assert mx.max(mx.abs(outputs.logits - recorded["step0.logits"])).item() > 0.1  # it can fail


def test_sizes_come_from_the_weights_where_the_configuration_is_open(tmp_path):
    source = open_upstream(FOLDER / "step_7", trm.load_config(upstream_trm(tmp_path)))
    assert source.step == 7
    assert source.taken == {
        "model.hidden_size": 32,
        "model.puzzle_emb_ndim": 40,
        "model.L_layers": 1,
    }
    assert source.model.spec == trm.TaskSpec(6, 16, num_puzzle_identifiers=5)
    assert source.config.model.hidden_size == 32 and source.config.model.num_heads == 2


@pytest.mark.parametrize("name", UPSTREAM_MODELS)
@pytest.mark.parametrize(
    "changes",
    [
        {"pos_encodings": "learned", "puzzle_emb_ndim": 40},
        {"mlp_t": True, "pos_encodings": "none", "expansion": 3},
        {"expansion": 30, "puzzle_emb_ndim": 0, "puzzle_emb_len": 0},
    ],
)
def test_every_model_goes_out_and_comes_back_to_the_bit(tmp_path, name, changes):
    """Sizes are read from names and shapes alone; heads and cycles from the file's metadata."""
    fields = vars(config_from_dict({"task": TASK, "model": {"name": name}}).model)
    changes = {key: value for key, value in changes.items() if key in fields}
    if name == "transformers_baseline" and changes.get("pos_encodings") == "none":
        changes["pos_encodings"] = "rope"
    model = small(name, **changes, **({"L_cycles": 6} if name == "trm_hier6" else {}))
    config = config_from_dict({"task": TASK, "model": vars(model.config)})
    run = save_checkpoint(tmp_path / "run", model, config, 5)
    target = tmp_path / "out.safetensors"
    assert main([str(run), "--to-upstream", str(target)]) == 0
    back = open_upstream(target, trm.load_config(settings(tmp_path, name=name)))
    assert back.step == 5
    before, after = as_numpy(model), as_numpy(back.model)
    assert list(before) == list(after)
    for key, array in before.items():
        assert np.array_equal(array.view(np.uint32), after[key].view(np.uint32)), key
    for key in ("hidden_size", "num_heads", "H_cycles", "L_cycles", "mlp_t", "puzzle_ndim"):
        if hasattr(model.config, key):
            assert getattr(back.config.model, key) == getattr(model.config, key), key
    assert back.model.positions == model.positions
    assert back.config.model.pos_encodings == model.config.pos_encodings


def test_the_reference_s_own_checkpoint_goes_back_to_the_bit(tmp_path):
    """Names, shapes, dtypes and bits of what torch wrote are those of what is written for it."""
    run, target = tmp_path / "run", tmp_path / "back.safetensors"
    config = str(upstream_trm(tmp_path, forward_dtype="auto"))
    assert main([str(FOLDER / "step_7"), "--config", config, "--output", str(run)]) == 0
    assert main([str(run), "--to-upstream", str(target)]) == 0
    theirs, (ours, metadata) = read_torch(FOLDER / "step_7"), read_safetensors(target)
    assert set(ours) == set(theirs) and "_orig_mod.model.inner.H_init" in ours
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype and ours[name].shape == array.shape, name
        assert np.array_equal(bits(ours[name]), bits(array)), name
    assert ours["_orig_mod.model.inner.L_init"].dtype == mx.bfloat16
    assert json.loads(metadata["config"])["puzzle_emb_len"] == 2
    assert main([str(run), "--to-upstream", str(target), "--names", "plain"]) == 0
    assert "model.inner.H_init" in read_safetensors(target)[0]


def test_a_bfloat16_checkpoint_goes_back_to_the_bit(tmp_path):
    model = small("trm", mlp_t=True, pos_encodings="none", puzzle_emb_len=2)
    state = {f"inner.{k}": v.astype(mx.bfloat16) for k, v in named_arrays(model.parameters())}
    source, run, target = (tmp_path / name for name in ("in.safetensors", "run", "out.safetensors"))
    mx.save_safetensors(str(source), state)
    config = settings(tmp_path, name="trm", num_heads=2)
    assert main([str(source), "--config", str(config), "--output", str(run)]) == 0
    back = ["--to-upstream", str(target), "--dtype", "bfloat16", "--names", "inner"]
    assert main([str(run), *back]) == 0
    written, _ = read_safetensors(target)
    assert set(written) == set(state)
    for name, array in state.items():
        assert written[name].dtype == mx.bfloat16
        assert np.array_equal(bits(written[name]), bits(array)), name


def test_a_run_is_evaluated_solved_and_has_the_step_of_the_file(tmp_path, capsys):
    run = tmp_path / "run"
    config = str(upstream_trm(tmp_path))
    assert main([str(FOLDER / "step_7"), "--config", config, "--output", str(run)]) == 0
    assert "6 tokens, 16 cells, 5 puzzle identifiers" in capsys.readouterr().out
    checkpoint = load_checkpoint(run)
    assert (checkpoint.step, checkpoint.path.name) == (7, "step_7")
    assert trm.Evaluator(checkpoint.model, checkpoint.config).run("test", 4)["all"]["count"] == 4
    assert len(list(trm.Solver.from_checkpoint(run).steps("4.21 1... 3.4. ..1."))) == 4
    again = tmp_path / "again"
    line = [str(FOLDER / "step_7"), "--config", config, "--output", str(again), "--step", "12"]
    assert main(line) == 0 and (again / "step_12").is_dir()


def test_hrm_s_published_names_are_read(tmp_path):
    """HRM's own repository saves the same names, compiled, in torch's zip layout."""
    model = small("hrm", H_layers=2, L_layers=3)
    arrays = as_numpy(model)
    path = tw.save(tmp_path / "checkpoint", arrays, "_orig_mod.model.inner.")
    loaded = trm.load_upstream_checkpoint(path, settings(tmp_path, name="hrm", num_heads=2))
    assert (loaded.config.H_layers, loaded.config.L_layers) == (2, 3)
    assert all(np.array_equal(array, arrays[k]) for k, array in as_numpy(loaded).items())


def test_settings_beside_a_checkpoint_are_used(tmp_path):
    """The reference writes all_config.yaml into its folder of checkpoints."""
    model = small("trm", L_cycles=5, num_heads=4, puzzle_emb_len=3)
    path = tw.save(tmp_path / "step_9", as_numpy(model), "model.inner.")
    side = tmp_path / "all_config.yaml"
    side.write_text(
        "arch:\n  name: recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1\n"
        "  L_cycles: 5\n  num_heads: 4\n  puzzle_emb_len: 3\n  H_cycles: 3\nlr: 0.0001\n"
    )
    config = open_upstream(path, trm.load_config(settings(tmp_path, name="trm"))).config.model
    assert (config.L_cycles, config.num_heads, config.puzzle_emb_len) == (5, 4, 3)
    with pytest.raises(trm.CheckpointError, match="L_cycles is 6 .*all_config.yaml says 5"):
        open_upstream(path, trm.load_config(settings(tmp_path, name="trm", L_cycles=6)))
    side.write_text("arch: [")
    assert open_upstream(path, trm.load_config(settings(tmp_path, name="trm"))).step == 9


def test_what_weights_do_not_show_is_said(tmp_path, caplog):
    path = tw.save(tmp_path / "step_9", as_numpy(small("trm")), "model.inner.")
    open_upstream(path, trm.load_config(settings(tmp_path, name="trm", num_heads=2)))
    assert "pos_encodings rope, H_cycles 3, L_cycles 6, puzzle_emb_len 16" in caplog.text


def test_contradictions_are_named_all_at_once(tmp_path, capsys):
    config = upstream_trm(tmp_path, hidden_size=64, mlp_t=True, puzzle_emb_ndim=64)
    run = tmp_path / "run"
    line = [str(FOLDER / "step_7"), "--config", str(config), "--output", str(run)]
    assert main([*line, "task.size=9"]) == 2
    message = capsys.readouterr().err
    for part in (
        "model.hidden_size is 64 in the configuration, the weights say 32",
        "model.puzzle_emb_ndim is 64 in the configuration, the weights say 40",
        "model.mlp_t is True in the configuration, the weights say False",
        "the task sudoku has 11 tokens, the weights 6",
    ):
        assert part in message
    assert len(message.splitlines()) == 1 and not run.exists()


def test_positions_that_do_not_fit_the_task_are_named(tmp_path):
    path = tw.save(tmp_path / "s", as_numpy(small("trm", mlp_t=True, puzzle_emb_len=2)), "inner.")
    config = settings(tmp_path, name="trm", num_heads=2)
    with pytest.raises(trm.CheckpointError, match="81 cells, the weights 18 positions"):
        trm.load_upstream_checkpoint(path, config, ["task.size=9"])
    assert trm.load_upstream_checkpoint(path, config).config.puzzle_emb_len == 2


def test_names_that_do_not_fit_are_named_all_at_once(tmp_path, capsys):
    arrays = as_numpy(small("trm"))
    arrays["lm_head.weight"] = np.zeros((6, 17), np.float32)
    arrays["novelty"] = np.zeros((2,), np.float32)
    del arrays["q_head.bias"], arrays["H_init"], arrays["L_level.layers.1.mlp.down_proj.weight"]
    path = tw.save(tmp_path / "step_1", arrays, "model.inner.")
    config = settings(tmp_path, name="trm_singlez", num_heads=2)
    line = [str(path), "--config", str(config), "--output", str(tmp_path / "run")]
    assert main(line) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and "4 weights do not fit the model" in message
    for part in (
        "missing L_level.layers.1.mlp.down_proj.weight (16, 256)",
        "missing q_head.bias (2,)",
        "unexpected novelty (2,)",
        "lm_head.weight is (6, 17), the model needs (6, 16)",
    ):
        assert part in message
    assert not (tmp_path / "run").exists()


def numbered(numbers: list, name: str = "mlp.down_proj.weight") -> dict:
    """Arrays of a small trm, and more of them in layers of these numbers."""
    arrays = as_numpy(small("trm"))
    return {**arrays, **{f"L_level.layers.{n}.{name}": np.zeros((1, 1), "f") for n in numbers}}


@pytest.mark.parametrize(
    "arrays, part",
    [
        (numbered([99999999], "mlp.x"), "L_level.layers.99999999, and no L_level.layers.2"),
        (numbered([4]), "L_level.layers.4, and no L_level.layers.2"),
        (numbered([2, 3]), "L_level.layers.2, L_level.layers.3 are too small"),
        (numbered(list(range(2, 900)), "x"), "L_level.layers.7, and 892 more are too small"),
    ],
)
def test_layers_that_are_none_build_no_model(tmp_path, capsys, monkeypatch, arrays, part):
    monkeypatch.setattr(
        "mlx_trm.upstream.reading.build_model", lambda *_, **__: pytest.fail("built")
    )
    path = tw.save(tmp_path / "step_1", arrays, "model.inner.")
    config = settings(tmp_path, name="trm", num_heads=2)
    assert main([str(path), "--config", str(config), "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and part in message, message
    assert len(message) < 1500


def test_a_swiglu_of_another_width_says_nothing_of_the_expansion(tmp_path):
    """It seemed to say 24576, which made a model that MLX cannot hold, and no file was named."""
    arrays = as_numpy(small("trm", hidden_size=256, expansion=4, L_layers=1))
    arrays["L_level.layers.0.mlp.down_proj.weight"] = np.zeros((1, 1 << 14), "f")
    path = tw.save(tmp_path / "step_1", arrays, "model.inner.")
    part = r"step_1: 1 weights do not .* is \(1, 16384\), the model needs \(256, 768\)"
    with pytest.raises(trm.CheckpointError, match=part):
        trm.load_upstream_checkpoint(path, settings(tmp_path, name="trm", num_heads=2))


@pytest.mark.parametrize("name", ["L_level.layers.01.x", f"L_level.layers.{'9' * 5000}.x"])
def test_numbers_that_no_layer_has_are_unexpected(tmp_path, name):
    path = tw.save(tmp_path / "step_1", {**as_numpy(small("trm")), name: np.zeros(1, "f")})
    with pytest.raises(trm.CheckpointError, match="1 weights do not fit .* unexpected L_level"):
        trm.load_upstream_checkpoint(path, settings(tmp_path, name="trm", num_heads=2))


@pytest.mark.parametrize("name", ["embed_tokens.embedding_weight", "puzzle_emb.weights"])
def test_weights_without_dimensions_are_named(tmp_path, name):
    path = tw.save(tmp_path / "s", {**as_numpy(small("trm")), name: np.zeros((), np.float32)})
    config = settings(tmp_path, name="trm", num_heads=2, hidden_size=16)
    with pytest.raises(trm.CheckpointError, match=rf"{name} (is )?\(\)"):
        trm.load_upstream_checkpoint(path, config)


@pytest.mark.parametrize(
    "name, states", [("trm", ["H_init"]), ("trm", ["H_init", "L_init"]), ("trm_hier6", ["L1_init"])]
)
def test_missing_initial_states_are_named(tmp_path, name, states):
    """What is left looks like another model's weights, by its names."""
    arrays = as_numpy(small(name))
    for state in states:
        del arrays[state]
    path = tw.save(tmp_path / "step_1", arrays, "model.inner.")
    missing = "; ".join(rf"missing {state} \(16,\)" for state in states)
    with pytest.raises(trm.CheckpointError, match=f"{len(states)} weights do not fit .*{missing}"):
        trm.load_upstream_checkpoint(path, settings(tmp_path, name=name, num_heads=2))


@pytest.mark.parametrize(
    "kind, name", [("trm", "trm_singlez"), ("trm_hier6", "trm"), ("trm", "trm_hier6")]
)
def test_models_that_differ_by_their_initial_states_are_told_apart(tmp_path, kind, name):
    path = tw.save(tmp_path / "step_1", as_numpy(small(kind)), "model.inner.")
    with pytest.raises(trm.CheckpointError, match=f"of the model {kind}, .* model.name {name};"):
        trm.load_upstream_checkpoint(path, settings(tmp_path, name=name, num_heads=2))


UGLY, CLEAN = "\x1b[2J\nnovel\r\x9b" + 200 * "y", r"\x1b[2J\nnovel\r\x9byyyy"


def ugly(path: Path, case: str) -> Path:
    """Write a checkpoint whose texts would clear the screen where they are printed."""
    arrays, ones = as_numpy(small("trm")), np.ones(2, np.float32)
    if case == "unexpected":
        return tw.save(path, {**arrays, UGLY: ones})
    if case == "many":
        return tw.save(path, {**arrays, **{f"{n}{UGLY}": ones for n in range(500)}})
    if case == "another model":
        return tw.save(path, {UGLY: ones})
    if case == "whole numbers":
        return tw.archive(path, tw.state_dict({UGLY: tw.simple("0", ones, "IntStorage")}), {})
    if case == "cut short":
        pickled = tw.state_dict({UGLY: tw.simple("0", ones)})
        return tw.archive(path, pickled, {"0": b"1234"})
    if case == "no numbers":
        return tw.archive(path, tw.state_dict({"x": tw.simple(UGLY, ones)}), {})
    if case == "older":
        pickled = tw.state_dict({"x": tw.simple(UGLY, ones)})
        return tw.stream(path, pickled, {UGLY: (3, ones.tobytes())})
    if case == "safetensors, whole numbers":
        mx.save_safetensors(str(path) + ".safetensors", {UGLY: mx.array([1, 2])})
        return Path(str(path) + ".safetensors")
    entry = {"dtype": UGLY if case == "dtype" else "F32", "shape": [3], "data_offsets": [0, 8]}
    header = json.dumps({UGLY if case == "size" else "x": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return path


@pytest.mark.parametrize(
    "case",
    [
        *("unexpected", "many", "another model", "whole numbers", "cut short", "no numbers"),
        *("older", "safetensors, whole numbers", "dtype", "size"),
    ],
)
def test_texts_of_a_file_are_printed_escaped_and_short(tmp_path, capsys, case):
    path = ugly(tmp_path / "step_1", case)
    config = settings(tmp_path, name="trm", num_heads=2)
    assert main([str(path), "--config", str(config), "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message[:-1].isprintable() and message[-1] == "\n", message
    assert CLEAN in message and "y" * 80 not in message, message
    assert len(message) < 2500
    assert case != "many" or "500 weights do not fit" in message and "and 488 more" in message


def test_weights_of_another_model_are_named(tmp_path):
    hrm = tw.save(tmp_path / "hrm", as_numpy(small("hrm")), "model.inner.")
    with pytest.raises(trm.CheckpointError, match="are of the model hrm, .* model.name trm"):
        trm.load_upstream_checkpoint(hrm, settings(tmp_path, name="trm"))
    foreign = {"conv1.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(trm.CheckpointError, match="no L_level or H_level among conv1.weight"):
        trm.load_upstream_checkpoint(
            tw.save(tmp_path / "resnet", foreign), settings(tmp_path, name="trm")
        )


def test_bad_lines_are_one_line(tmp_path, capsys):
    source, run = str(FOLDER / "step_7"), tmp_path / "run"
    config = str(upstream_trm(tmp_path))
    assert main([source, "--config", config, "--output", str(run)]) == 0
    before = (run / "config.yaml").read_bytes()
    capsys.readouterr()
    for line, part in (
        ([source, "--config", config, "--output", str(run)], "is not empty"),
        ([source, "--config", config], "name --output RUN"),
        ([source, "--output", str(tmp_path / "x")], "--config FILE is missing"),
        ([str(run), "--to-upstream", str(tmp_path / "x.bin")], "ends in .safetensors or .pt"),
        ([str(run), "--to-upstream", str(tmp_path / "no" / "x.pt")], "there is no folder"),
        ([str(run), "--to-upstream", str(run / "step_7" / MODEL)], "its folder is a checkpoint"),
        ([str(run), "--to-upstream", str(run / "latest" / MODEL)], "its folder is a checkpoint"),
        (
            [source, "--config", config, "--output", str(tmp_path / "x")]
            + ["--weights", "raw", "--dtype", "float16", "--names", "inner"],
            "--weights, --dtype, --names: for --to-upstream only",
        ),
        ([source, "--to-upstream", str(tmp_path / "x.safetensors")], "is a file"),
        (
            [str(run), "--to-upstream", str(tmp_path / "x.safetensors"), "train.lr=1"],
            "name the run",
        ),
        ([source, "--config", config, "--output", str(tmp_path / "x"), "--step", "-1"], "--step"),
        ([str(tmp_path / "gone"), "--config", config, "--output", str(tmp_path / "x")], "No such"),
    ):
        assert main(line) == 2
        message = capsys.readouterr().err
        assert len(message.splitlines()) == 1 and part in message, message
    assert (run / "config.yaml").read_bytes() == before
    load_checkpoint(run)  # whole as before
    assert not list(tmp_path.glob("x*")) and not list(tmp_path.glob(".x*"))


def test_a_pt_file_without_torch_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main([str(tmp_path), "--to-upstream", str(tmp_path / "x.pt")]) == 2
    assert "torch, which is not installed" in capsys.readouterr().err


def test_models_that_the_reference_cannot_have_are_refused(tmp_path, capsys):
    model = small("trm", swiglu_multiple=8)
    config = config_from_dict({"task": TASK, "model": vars(model.config)})
    run = save_checkpoint(tmp_path / "run", model, config, 5)
    assert main([str(run), "--to-upstream", str(tmp_path / "x.safetensors")]) == 2
    assert "swiglu_multiple of 256" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings", [{"gate_norm": True}, {"head_bias": True}, {"damping": 0.1, "noise": 0.01}]
)
def test_settings_that_the_reference_has_not_are_refused(tmp_path, capsys, settings):
    model = small("trm", swiglu_multiple=256, **settings)
    config = config_from_dict({"task": TASK, "model": vars(model.config)})
    run = save_checkpoint(tmp_path / "run", model, config, 5)
    assert main([str(run), "--to-upstream", str(tmp_path / "x.safetensors")]) == 2
    message = capsys.readouterr().err
    assert f"it has no {next(iter(settings))}" in message and len(message.splitlines()) == 1


def test_settings_go_to_the_reference_and_back():
    model = small("trm", puzzle_emb_len=3)
    theirs = upstream_settings(model.config, model.spec)
    assert theirs["forward_dtype"] == "bfloat16" and theirs["H_layers"] == 0
    ours, spec, left = upstream_model_config("trm", theirs)
    assert (spec, left) == (model.spec, [])
    assert {**vars(ours), "forward_dtype": "auto"} == vars(model.config)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise trm.CheckpointError("no space")

    monkeypatch.setattr("mlx_trm.upstream.reading.save_checkpoint", fail)
    run = tmp_path / "run"
    config = str(upstream_trm(tmp_path))
    assert main([str(FOLDER / "step_7"), "--config", config, "--output", str(run)]) == 2
    assert not run.exists()


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_stops_early_can_be_tried_again(tmp_path, monkeypatch, there, error):
    """At the checkpoint, after the configuration."""

    def fail(*_):
        raise error

    run, config = tmp_path / "run", trm.load_config(upstream_trm(tmp_path))
    if there:
        run.mkdir()
    monkeypatch.setattr("mlx_trm.runs.checkpoint.point_link", fail)
    with pytest.raises((trm.CheckpointError, KeyboardInterrupt)) as caught:
        convert_upstream(FOLDER / "step_7", config, run)
    assert ".tmp" not in str(caught.value), "the hidden name is not the user's"
    assert run.exists() == there and not list(tmp_path.glob("run/*"))
    assert not list(tmp_path.glob(".run*"))
    monkeypatch.undo()
    convert_upstream(FOLDER / "step_7", config, run)
    assert load_checkpoint(run).step == 7


def test_a_killed_conversion_is_no_obstacle(tmp_path):
    """It left a hidden folder beside, which goes when its process has; that of another stays."""
    gone = run_python("-c", "import os; print(os.getpid())").stdout.strip()
    machine = owner_name().partition("-")[2]
    left = [tmp_path / f".run.{number}-{machine}.tmp" for number in (gone, os.getppid())]
    for folder in left:
        (folder / ".step_7.tmp-1").mkdir(parents=True)
        (folder / "config.yaml").write_text("half")
    convert_upstream(FOLDER / "step_7", trm.load_config(upstream_trm(tmp_path)), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run").step == 7
    assert [folder.exists() for folder in left] == [False, True]


def test_a_folder_that_another_process_took_meanwhile_is_left_alone(tmp_path, monkeypatch):
    run = tmp_path / "run"

    def slow(*args):
        run.mkdir()
        (run / "config.yaml").write_text("theirs")
        return open_upstream(*args)

    monkeypatch.setattr("mlx_trm.upstream.reading.open_upstream", slow)
    with pytest.raises(trm.ConfigError, match="is a file or not empty"):
        convert_upstream(FOLDER / "step_7", trm.load_config(upstream_trm(tmp_path)), run)
    assert [p.name for p in tmp_path.glob("*run*")] == ["run"]
    assert (run / "config.yaml").read_text() == "theirs"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are Unix's")
def test_a_pipe_is_refused_at_once(tmp_path):
    """In a process of its own, since it waited for ever."""
    os.mkfifo(tmp_path / "pipe")
    line = [str(tmp_path / "pipe"), "--config", "sudoku.yaml", "--output", str(tmp_path / "run")]
    done = run_python("-m", "mlx_trm.convert", *line)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "pipe: is no regular file" in done.stderr
