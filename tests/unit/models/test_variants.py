"""What holds for each of the reference's other models: it runs, trains, is saved and solves."""

import dataclasses
import json

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import batches
from marks import experiment as marks_experiment
from marks import flat
from mlx.utils import tree_flatten
from peaks import peak_bytes
from plain import SMALL, SPEC, VARIANTS, begun, small
from scripted import scripted_model

import mlx_trm as trm
from mlx_trm.config.loading import config_from_dict
from mlx_trm.config.registry import MODELS
from mlx_trm.inference.step import EvaluationStep
from mlx_trm.models import build_model
from mlx_trm.models.carry import Batch, random_batch
from mlx_trm.models.losses import act_loss
from mlx_trm.models.memory import estimate_row_bytes
from mlx_trm.upstream.names import upstream_model_config, upstream_model_name

CLASSES = {
    "hrm": (trm.HRM, trm.HRMConfig),
    "trm_singlez": (trm.TRMSingleZ, trm.TRMSingleZConfig),
    "trm_hier6": (trm.TRMHier6, trm.TRMHier6Config),
    "transformers_baseline": (trm.TransformersBaseline, trm.TransformersBaselineConfig),
}
LATENTS = {"hrm": 2, "trm_singlez": 1, "trm_hier6": 7, "transformers_baseline": 1}
# What the reference's config/arch files say, apart from the heads of the transformer.
RECIPES = {
    "hrm": {"H_cycles": 2, "L_cycles": 2, "H_layers": 4, "L_layers": 4, "mlp_t": False},
    "trm_singlez": {"H_cycles": 3, "L_cycles": 6, "L_layers": 2, "puzzle_emb_len": 16},
    "trm_hier6": {"H_cycles": 3, "L_cycles": 6, "L_layers": 2, "no_ACT_continue": True},
    "transformers_baseline": {"H_layers": 8, "act_enabled": True, "act_inference": False},
}


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_name_stands_for_the_class_and_the_recipe_of_the_reference(name):
    model_class, config_class = CLASSES[name]
    entry = MODELS.get(name)
    assert (entry.cls, entry.config_class) == (model_class, config_class)
    config = config_from_dict({"task": {"name": "sudoku"}, "model": {"name": name}}).model
    assert isinstance(config, config_class) and config == config_class()
    shared = {"hidden_size": 512, "num_heads": 8, "expansion": 4.0, "halt_max_steps": 16}
    shared.update(pos_encodings="rope", halt_exploration_prob=0.1, rms_norm_eps=1e-5)
    for key, value in {**shared, **RECIPES[name]}.items():
        assert getattr(config, key) == value, key
    assert config.puzzle_ndim == 512, "puzzle_emb_ndim is hidden_size where unset"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_step_has_the_shapes_and_dtypes_promised(name, dtype):
    model = small(name, forward_dtype=dtype).eval()
    batch = random_batch(SPEC, 3)
    carry, outputs = model(model.initial_carry(batch), batch)
    # The puzzle vector has 20 numbers, the state 16; TRM's kin are given 3 positions.
    length = 12 + (3 if name.startswith("trm") else 2)
    assert [latent.shape for latent in carry.latents] == [(3, length, 16)] * LATENTS[name]
    assert outputs.logits.shape == (3, 12, 7)
    assert {latent.dtype for latent in carry.latents} == {getattr(mx, dtype)}
    assert outputs.logits.dtype == getattr(mx, dtype)
    assert outputs.q_halt.dtype == outputs.q_continue.dtype == mx.float32
    assert np.array(carry.steps).tolist() == [1, 1, 1]
    exact = small(name).eval()
    _, expected = exact(exact.initial_carry(batch), batch)
    difference = np.array(outputs.logits.astype(mx.float32)) - np.array(expected.logits)
    bound = {"float32": 0, "bfloat16": 0.2, "float16": 0.03}[dtype]
    assert np.abs(difference).mean() <= bound


@pytest.mark.parametrize("name", VARIANTS)
def test_a_seed_decides_the_weights(name):
    one, same, other = (
        dict(tree_flatten(build_model(SMALL[name], SPEC, seed=seed).parameters()))
        for seed in (0, 0, 1)
    )
    assert all(mx.array_equal(array, same[key]) for key, array in one.items())
    random = [key for key in one if key.endswith("proj.weight") or key.endswith("_init")]
    assert len({np.array(one[key]).tobytes() for key in random}) == len(random), "all differ"
    assert not any(mx.array_equal(one[key], other[key]) for key in random)
    assert np.array(one["q_head.bias"]).tolist() == [-5, -5]
    assert not np.array(one["q_head.weight"]).any()


@pytest.mark.parametrize("name", VARIANTS)
def test_what_adam_trains_leaves_out_buffers_and_the_table(name):
    model = small(name)
    trained = {key for key, _ in tree_flatten(model.trained_weights())}
    everything = {key for key, _ in tree_flatten(model.parameters())}
    assert everything - trained == {"puzzle_emb.weights", *model.initial_names}


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(5)), name=st.sampled_from(VARIANTS))
def test_a_row_does_not_depend_on_its_place_in_the_batch(order, name):
    model = small(name).eval()
    batch = random_batch(SPEC, 5)
    carry, outputs = model(model.initial_carry(batch), batch)
    moved_batch = Batch(*(part[mx.array(order)] for part in batch))
    moved, moved_outputs = model(model.initial_carry(moved_batch), moved_batch)
    for whole, part in zip((*carry.latents, *outputs[:3]), (*moved.latents, *moved_outputs[:3])):
        np.testing.assert_allclose(np.array(whole)[order], np.array(part), atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_compiled_evaluation_step_equals_a_plain_one(name):
    model = small(name).eval()
    carry, rows = begun(model)
    plain, outputs = EvaluationStep(model, False)(model.weights(), carry, rows)
    fast, fast_outputs = EvaluationStep(model, True)(model.weights(), carry, rows)
    for ours, theirs in zip((*plain.latents, *outputs[:3]), (*fast.latents, *fast_outputs[:3])):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_carry_that_leaves_has_no_gradient(name):
    model = small(name)
    carry, rows = begun(model)

    def leaving(weights):
        with model.using(weights):
            latents, _ = model.reason(carry, rows)
        return sum(mx.sum(latent) for latent in latents)

    for _, gradient in tree_flatten(mx.grad(leaving)(model.trained_weights())):
        assert not np.array(gradient).any()


def tiny(name: str, **changes):
    """A model for the toy task of ``marks``."""
    changes = {"puzzle_emb_ndim": 16, "halt_max_steps": 3, **changes}
    return dataclasses.replace(SMALL[name], **changes)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_compiled_train_step_equals_a_plain_one(name):
    trainers = [
        trm.Trainer(marks_experiment(model=tiny(name), train__compile=how, train__lr=1e-4))
        for how in ("never", "always")
    ]
    for batch in batches(trainers[0], 3):
        one, two = (trainer.train_step(batch) for trainer in trainers)
        assert set(one) == set(two)
        assert ("q_continue_loss" in one) == (name == "hrm")
        for key, value in one.items():
            assert two[key].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-4), key
    ours, theirs = flat(trainers[0]), flat(trainers[1])
    for key, value in ours.items():
        # Where a gradient is next to nothing its sign, and so a whole step of 1e-4, is rounding.
        np.testing.assert_allclose(theirs[key], value, atol=7e-4, err_msg=key)


@pytest.mark.parametrize("name", VARIANTS)
def test_it_goes_on_after_a_stop_to_the_bit(name):
    def run(folder: str) -> trm.Trainer:
        config = marks_experiment(model=tiny(name), run_dir=folder, train__max_steps=12)
        return trm.Trainer(config)

    whole, parts = run("whole"), run("parts")
    whole.fit()
    assert parts.fit(on_tick=lambda step: parts.stop() if step == 5 else None).steps == 5
    resumed = trm.Trainer.resume("parts")
    assert [len(carry.latents) for carry in resumed.train_step.carries] == [LATENTS[name]]
    assert resumed.fit().steps == 12
    ours, theirs = flat(resumed), flat(whole)
    assert all(np.array_equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_micro_batches_train_alike(name):
    config = {"model": tiny(name), "train__lr": 1e-4, "train__lr_warmup_steps": 0}
    whole = trm.Trainer(marks_experiment(**config))
    parts = trm.Trainer(marks_experiment(train__micro_batch_size=4, **config))
    for batch in batches(whole, 2):
        one, two = whole.train_step(batch), parts.train_step(batch)
        assert set(one) == set(two)
        for key, value in one.items():
            assert two[key].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize("name", [*VARIANTS, "trm"])
def test_it_trains_and_its_checkpoint_evaluates_and_solves(name, tmp_path):
    config = config_from_dict(
        {
            "task": {"name": "sudoku", "size": 4, "train_puzzles": 32, "test_puzzles": 16},
            "model": {"name": name},
            "train": {"batch_size": 16, "epochs": 15, "lr": 3e-3, "lr_warmup_steps": 3},
            "run_dir": str(tmp_path / "run"),
        },
        overrides=["train.weight_decay=0.1", "train.ema_rate=0.9", "train.log_interval=5"],
    )
    config.model = tiny(name)
    report = trm.Trainer(config).fit()
    assert report.steps == 30
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [line["lm_loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 6 and losses[-1] < 0.9 * losses[0]
    assert all(("q_continue_loss" in line) == (name == "hrm") for line in lines[:6])
    loaded = trm.load_checkpoint(tmp_path / "run")
    assert type(loaded.model) is MODELS.get(name).cls
    assert loaded.config.model == config.model
    again = trm.Evaluator(loaded.model, loaded.config).run("test")["all"]
    assert again == pytest.approx(report.evaluations[-1][1]["all"])
    assert again["count"] == 16 and again["steps"] == 3
    solver = trm.Solver.from_checkpoint(tmp_path / "run")
    steps = list(solver.steps("1.....2..3.....4"))
    assert [step.step for step in steps] == [1, 2, 3]
    assert all(len(step.answer) == 16 for step in steps)
    many = solver.solve_many(["2.....1..3.....4", "1.....2..3.....4"])
    assert many[1].answer == steps[-1].answer
    assert many[1].halt_probability == pytest.approx(steps[-1].halt_probability, abs=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "length, rows, changes",
    [
        (81, 4, {}),
        (240, 2, {"num_heads": 8}),
        (81, 4, {"mlp_t": True, "pos_encodings": "none"}),
    ],
)
def test_the_memory_estimate_is_within_a_factor_of_two_of_the_peak(name, length, rows, changes):
    if name == "transformers_baseline" and "mlp_t" in changes:
        changes = {"pos_encodings": "learned"}  # it has no MLP over positions
    smaller = {
        "hrm": {"H_layers": 2, "L_layers": 2},
        "trm_singlez": {"H_cycles": 2, "L_cycles": 2},
        "trm_hier6": {"H_cycles": 2, "L_layers": 1},
        "transformers_baseline": {"H_layers": 4},
    }
    shared = {"hidden_size": 64, "num_heads": 4, "forward_dtype": "float32"}
    spec = trm.TaskSpec(vocab_size=11, seq_len=length)
    model = build_model(CLASSES[name][1](**{**shared, **smaller[name], **changes}), spec)
    batch = random_batch(spec, rows)
    carry = model.begin(model.initial_carry(batch), batch)
    vectors = model.puzzle_rows(carry)
    mx.eval(carry.pack(), vectors, model.parameters())

    def loss_fn(weights, table_rows):
        with model.using(weights):
            left, outputs = model.step(carry, table_rows)
        return act_loss(outputs, carry.current.labels, left.halted, left.steps)[0]

    gradient = mx.grad(loss_fn, (0, 1))
    peak = peak_bytes(lambda: gradient(model.trained_weights(), vectors))
    assert 0.5 < rows * estimate_row_bytes(model) / peak < 2.0


def test_the_memory_of_a_model_whose_blocks_are_not_known_is_not_estimated():
    assert estimate_row_bytes(scripted_model()) == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_the_reference_s_settings_become_a_configuration(name):
    given_settings = {
        "hidden_size": 16,
        "num_heads": 2,
        "expansion": 4,
        "H_cycles": 1,
        "L_cycles": 6,
        "H_layers": 3,
        "L_layers": 1,
        "pos_encodings": "rope",
        "halt_max_steps": 4,
        "halt_exploration_prob": 0.25,
        "forward_dtype": "float32",
        "puzzle_emb_ndim": 16,
        "seq_len": 9,
        "vocab_size": 7,
        "num_puzzle_identifiers": 3,
        "batch_size": 6,
    }
    config, spec, left = upstream_model_config(name, given_settings)
    assert isinstance(config, CLASSES[name][1]) and config.name == name
    assert spec == trm.TaskSpec(vocab_size=7, seq_len=9, num_puzzle_identifiers=3)
    assert left == (["L_cycles", "L_layers"] if name == "transformers_baseline" else [])
    assert getattr(config, "H_layers", 3) == 3 and getattr(config, "L_cycles", 6) == 6
    assert config.problems() == []


def test_the_reference_s_names_of_its_models():
    assert upstream_model_name("recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1") == "hrm"
    upstream = "recursive_reasoning.transformers_baseline@Model_ACTV2"
    assert upstream_model_name(upstream) == "transformers_baseline"
    assert upstream_model_name("trm_hier6") == "trm_hier6"
