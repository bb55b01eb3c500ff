"""Checkpoints of common trainers: several sets of weights, wrappers, what stands beside them."""

import logging
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch_writer as tw
from published import COMPILED, averaged, named, same, weights

import mlx_trm as trm
from mlx_trm.convert import main
from mlx_trm.models import named_arrays
from mlx_trm.runs.checkpoint import load_checkpoint
from mlx_trm.upstream.names import strip_prefix
from mlx_trm.upstream.reading import ReadOptions, open_upstream, read_upstream
from mlx_trm.upstream.torch_files import open_torch

ADAM = {
    "state": {n: {"step": 3, "exp_avg": np.ones(2, np.float32)} for n in range(3)},
    "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "amsgrad": False, "params": [0, 1, 2]}],
}
NAMESPACE = tw.name("argparse", "Namespace") + b")\x81" + b"}(" + tw.text("lr") + b"K\x01ub"
COUNTER = tw.name("collections", "Counter") + tw.several(b"}(K\x05K\x01u") + b"R"
HPARAMS = tw.name("lightning.fabric.utilities.data", "AttributeDict") + b")\x81(" + tw.text("x")
WRAPPED = {
    "plain": lambda w: w,
    "model_state_dict": lambda w: {"epoch": 3, "model_state_dict": w, "loss": 0.5, "opt": ADAM},
    "state_dict": lambda w: {"state_dict": w, "args": NAMESPACE, "scheduler": COUNTER},
    "model": lambda w: {"model": w, "optimizer": ADAM, "epoch": 1},
    "ema": lambda w: {"ema": w},
    "net": lambda w: {"net": w, "acc": 97.5},
    "a list": lambda w: ["v1", w],
    "deep": lambda w: {"checkpoint": {"last": {"weights": w}}},
    "lightning": lambda w: {
        "epoch": 2,
        "global_step": 77,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": w,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": None, "k": np.ones(1, "f")}},
        "optimizer_states": [ADAM],
        "lr_schedulers": [{"milestones": COUNTER}],
        "hparams_name": "kwargs",
        "hyper_parameters": HPARAMS + b"K\x01u",
    },
}
PREFIXES = (
    *("", "module.", "module.module.", "_orig_mod.module.", "module._orig_mod.model.inner."),
    *("_orig_mod._orig_mod.model.inner.", "model._orig_mod.inner.", "model.model.inner."),
    *("_fsdp_wrapped_module._orig_mod.model.inner.", "net.module.inner._orig_mod."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", sorted(WRAPPED))
def test_wrapped_checkpoints_are_read(tmp_path, wrapper, prefix):
    state = named(
        {"embed_tokens.embedding_weight": np.ones((3, 2), "f"), "a.b": np.ones(1, "f")}, prefix
    )
    path = tw.save_tree(tmp_path / "last.ckpt", WRAPPED[wrapper](state))
    arrays, metadata = read_upstream(path)
    assert sorted(map(strip_prefix, arrays)) == ["a.b", "embed_tokens.embedding_weight"]
    assert metadata.get("step") == ("77" if wrapper == "lightning" else None)


def test_the_rest_of_a_dict_may_be_anything_where_a_part_is_named(tmp_path):
    state = {"model.embed_tokens.embedding_weight": np.ones((3, 2), "f"), "epoch": 3}
    path = tw.save_tree(tmp_path / "x.pt", state)
    with pytest.raises(trm.CheckpointError, match="epoch is no tensor"):
        read_upstream(path)
    assert list(read_upstream(path, "model")[0]) == ["embed_tokens.embedding_weight"]


def test_the_name_that_somebody_gave_the_model_is_dropped(tmp_path):
    """As Lightning puts an attribute's name before all names."""
    arrays = weights("sudoku", mlp_t=True)
    state = named(arrays, "reasoner._orig_mod.core.inner.")
    path = tw.save_tree(tmp_path / "last.ckpt", {"state_dict": state})
    assert main([str(path), str(tmp_path / "run"), "--preset", "trm-sudoku"]) == 0
    same(load_checkpoint(tmp_path / "run"), arrays)
    more = {"reasoner.loss.weight": np.ones(1, "f"), "metric.total": np.ones(1, "f")}
    tw.save_tree(path, {"state_dict": {**state, **more}})
    options = ReadOptions(preset="trm-sudoku")
    with pytest.raises(trm.CheckpointError, match="unexpected metric.total .*reasoner.loss.weight"):
        open_upstream(path, None, options)
    tw.save_tree(path, {"state_dict": {**state, **more}})
    options = ReadOptions("state_dict.reasoner._orig_mod.core", preset="trm-sudoku")
    open_upstream(path, None, options)


def test_counters_of_averages_are_no_weights(tmp_path):
    """As torch's AveragedModel and ema-pytorch keep them among the weights."""
    count = tw.tensor(tw.storage("gone", "LongStorage", 1), 0, (), ())
    state = {"module.embed_tokens.embedding_weight": np.ones((3, 2), "f"), "n_averaged": count}
    path = tw.save_tree(tmp_path / "x.pt", {"ema": {**state, "initted": count}})
    assert list(read_upstream(path)[0]) == ["module.embed_tokens.embedding_weight"]


def test_wrappers_inside_a_name_are_dropped(tmp_path):
    """Where parts of a model were compiled, sharded or recomputed."""
    arrays = weights("sudoku", mlp_t=True)
    inside = {
        name.replace("L_level.", "L_level._orig_mod.")
        .replace("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.")
        .replace("embed_tokens.", "embed_tokens.module."): array
        for name, array in arrays.items()
    }
    path = tw.save_tree(tmp_path / "step_9.pt", {"model": named(inside, "module.")})
    assert main([str(path), str(tmp_path / "run"), "--preset", "trm-sudoku"]) == 0
    same(load_checkpoint(tmp_path / "run"), arrays)


def test_an_average_takes_what_is_not_averaged_from_beside_it(tmp_path, caplog):
    caplog.set_level(logging.INFO, "mlx_trm")
    arrays = weights("sudoku", mlp_t=True)
    tree = {"model": named(arrays), "ema": averaged(arrays, "module.")}
    path = tw.save_tree(tmp_path / "step_9.pt", tree)
    options = ReadOptions(entry="ema", preset="trm-sudoku")
    found = dict(named_arrays(open_upstream(path, None, options).model.parameters()))
    table, head = (np.array(found[name]) for name in ("puzzle_emb.weights", "lm_head.weight"))
    assert np.array_equal(table, arrays["puzzle_emb.weights"])
    assert np.array_equal(head, arrays["lm_head.weight"] / 2)
    assert "puzzle_emb.weights: not in ema; taken from model._orig_mod" in caplog.text


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_two_sets_under_names_of_one_dict_are_told_apart(tmp_path, kind):
    """As ema-pytorch and Lightning modules keep them."""
    one = np.full((3, 2), 1.0, np.float32)
    state = {
        "model.inner.embed_tokens.embedding_weight": one,
        "ema_model.inner.embed_tokens.embedding_weight": one * 2,
        "teacher.embed_tokens.embedding_weight": one * 3,
    }
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "torch":
        tw.save_tree(path, {"state_dict": {**state, "initted": np.zeros(1, np.uint8)}})
    else:
        mx.save_safetensors(str(path), {name: mx.array(array) for name, array in state.items()})
    start = "state_dict." if kind == "torch" else ""
    with pytest.raises(trm.CheckpointError) as caught:
        read_upstream(path)
    assert "3 sets of weights: " in str(caught.value)
    for number, entry in enumerate(("model", "ema_model", "teacher"), 1):
        assert f"{start}{entry}" in str(caught.value)
        ((name, array),) = read_upstream(path, start + entry)[0].items()
        assert strip_prefix(name) == "embed_tokens.embedding_weight" and array[0, 0] == number
    for entry in ("mode", "optimizer", "", "state_dict.x", "\x1b[2J"):
        with pytest.raises(trm.CheckpointError) as caught:
            read_upstream(path, entry)
        assert "no weights of such a model" in str(caught.value) or entry == ""
        assert str(caught.value).isprintable()


def test_a_file_without_such_weights_lists_its_entries(tmp_path):
    tree = {"policy": {"w": np.ones(2, "f")}, "critic": {"w": np.ones(2, "f")}, "n": 3}
    path = tw.save_tree(tmp_path / "x.pt", tree)
    with pytest.raises(trm.CheckpointError, match="it has policy, critic; choose with --entry"):
        read_upstream(path)


def test_settings_that_are_none_are_left_alone(tmp_path, capsys):
    """What stands in a file may be anything; what could be a setting is checked as one."""
    arrays = named(weights("sudoku", mlp_t=True))
    options = [str(tmp_path / "run"), "--preset", "trm-sudoku"]
    odd = {"H_cycles": 2**70, "num_heads": [1] * 9, "pos_encodings": "x" * 10_000, "lambda_": "y"}
    odd.update(rms_norm_eps={"a": 1}, noise_scale=None, rope_theta=float("inf"))
    path = tw.save_tree(tmp_path / "x.pt", {"model": arrays, "config": {"arch": odd}})
    assert main([str(path), *options]) == 0
    assert load_checkpoint(tmp_path / "run").config.model.H_cycles == 3
    for wrong in (
        {"H_cycles": 0},
        {"pos_encodings": "rope2d"},
        {"lambda_": 0.5, "noise_scale": -1.0},
    ):
        tw.save_tree(path, {"model": arrays, "config": wrong})
        capsys.readouterr()
        assert main([str(path), str(tmp_path / "other"), "--preset", "trm-sudoku"]) == 2
        message = capsys.readouterr().err
        assert str(path) in message and "model." in message, message
        assert len(message) < 600 and message[:-1].isprintable(), message


def test_numbers_of_what_is_not_taken_are_not_read(tmp_path):
    """An optimiser's may be missing, of another kind, or lie."""
    lies = tw.tensor(tw.storage("gone", "DoubleStorage", 2**40), 0, (2**20, 2**20), (2**20, 1))
    state = {"embed_tokens.embedding_weight": np.ones((3, 2), np.float32)}
    path = tw.save_tree(tmp_path / "x.pt", {"model": state, "optimizer": {0: lies}})
    assert list(open_torch(path).arrays) == list(state)


def test_many_sets_and_loops_take_no_time(tmp_path):
    ones = np.ones((1, 1), np.float32)
    tree = {f"m{n}": {"embed_tokens.embedding_weight": ones} for n in range(3000)}
    path = tw.save_tree(tmp_path / "x.pt", tree)
    with pytest.raises(trm.CheckpointError, match="3000 sets of weights: m0, .*and 2994 more"):
        read_upstream(path)
    long = "model." * 1_000_000 + "embed_tokens.embedding_weight"
    path = tw.save_tree(tmp_path / "y.pt", {"a": {long: ones}, "b": {"x." + long: ones}})
    with pytest.raises(trm.CheckpointError, match="no embed_tokens.embedding_weight; it has a, b"):
        read_upstream(path)
    path = tw.save_tree(tmp_path / "z.pt", {long: ones, "module." * 9 + "H_init": ones})
    arrays = list(read_upstream(path)[0])
    assert [strip_prefix(name) for name in arrays] == ["embed_tokens.embedding_weight", "H_init"]
    assert strip_prefix("module.model") == "model" and strip_prefix("module") == "module"
    loop = b"\x80\x02}q\x00(" + tw.text("model") + b"h\x00" + tw.text("x") + b"](h\x00h\x00eu."
    with pytest.raises(trm.CheckpointError, match="is a state dict of its own"):
        read_upstream(tw.archive(tmp_path / "loop", loop, {}))


def test_objects_of_trainers_are_left_unread_and_others_refused(tmp_path):
    """What stands for them keeps nothing, and no class of the file is ever looked up."""
    state = {"model": {"embed_tokens.embedding_weight": np.ones((1, 1), np.float32)}}
    for extra in (NAMESPACE, COUNTER, HPARAMS + b"K\x01u"):
        path = tw.save_tree(tmp_path / "x.pt", {**state, "extra": extra})
        assert len(read_upstream(path)[0]) == 1
        inside = {"model": {**state["model"], "extra": extra}}
        with pytest.raises(trm.CheckpointError, match="extra is no tensor"):
            read_upstream(tw.save_tree(tmp_path / "y.pt", inside))
    for name in (("__main__", "Config"), ("argparse", "ArgumentParser"), ("numpy", "load")):
        call = tw.name(*name) + b")R"
        path = tw.save_tree(tmp_path / "x.pt", {**state, "extra": call})
        with pytest.raises(trm.CheckpointError, match=f"asks for {'.'.join(name)}.*save model"):
            read_upstream(path)


# NaN and infinity --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_named_and_refused(tmp_path, capsys, value):
    arrays = weights("sudoku", rows=3, mlp_t=True)
    arrays["lm_head.weight"][1, 2:5] = value
    arrays["puzzle_emb.weights"][2, 3] = value
    path, run = str(tw.save_tree(tmp_path / "step_5", named(arrays))), str(tmp_path / "run")
    options = [path, run, "--preset", "trm-sudoku"]
    assert main(options) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert f"{COMPILED}lm_head.weight (3 of 176 numbers)" in message
    assert f"{COMPILED}puzzle_emb.weights (1 of 48 numbers)" in message
    assert not Path(run).exists()
    with pytest.raises(trm.CheckpointError, match="holds NaN or infinity"):
        trm.load_upstream_checkpoint(path, overrides=[], config=None)


def test_weights_that_become_infinite_are_not_written(tmp_path, capsys):
    arrays = weights("sudoku", mlp_t=True)
    arrays["q_head.bias"][0] = 1e6
    path, run = str(tw.save_tree(tmp_path / "step_5", named(arrays))), str(tmp_path / "run")
    assert main([path, run, "--preset", "trm-sudoku"]) == 0
    target = tmp_path / "out.safetensors"
    back = [run, "--to-upstream", str(target)]
    assert main([*back, "--dtype", "float16"]) == 2
    message = capsys.readouterr().err
    assert "q_head.bias (1 of 2 numbers)" in message and "a wider --dtype" in message
    assert not target.exists()
    assert main(back) == 0
