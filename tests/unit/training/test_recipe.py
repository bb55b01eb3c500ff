"""What a recipe can change: clipping, schedules, smoothing, curriculum, rates by name, averages."""

import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from marks import batches, experiment, flat
from mlx.utils import tree_flatten, tree_map

import mlx_trm as trm
from mlx_trm.config.sections import TrainConfig
from mlx_trm.errors import ConfigError
from mlx_trm.models.carry import draw_exploration
from mlx_trm.models.losses import act_loss
from mlx_trm.training import loop
from mlx_trm.training.optim import clip_norm
from mlx_trm.training.schedule import Schedule
from mlx_trm.training.trainer import Trainer


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def lines(run: str) -> list:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").open()]


# Gradients ---------------------------------------------------------------------------------------


def test_a_norm_is_cut_to_the_most_it_may_be():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (5,), (2, 2))]
    tree = {"a": mx.array(arrays[0]), "b": [{"c": mx.array(a)} for a in arrays[1:]]}
    norm = math.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays))
    for most in (0.5, 100.0):
        clipped, found = clip_norm(tree, most)
        assert found.item() == pytest.approx(norm, rel=1e-6)
        for (_, have), want in zip(tree_flatten(clipped), arrays):
            np.testing.assert_allclose(np.array(have), want * min(1.0, most / norm), rtol=1e-6)
    still, zero = clip_norm({"a": mx.zeros((3,))}, 1.0)
    assert zero.item() == 0 and not np.array(still["a"]).any()


def recorded_gradients(trainer: Trainer) -> list:
    """Make an optimiser that keeps what it is given, and moves nothing."""
    found = []

    def apply(gradients, weights):
        found.append({name: np.array(array) for name, array in tree_flatten(gradients)})
        return weights

    trainer.train_step.optimizer.apply_gradients = apply
    return found


@pytest.mark.parametrize("size", [None, 2])
def test_the_gradients_of_the_whole_batch_are_clipped(size):
    """Not those of a micro-batch, nor the puzzle rows'; the log has the norm before."""
    changes = {"train__compile": "never", "train__micro_batch_size": size}
    plain = Trainer(experiment(**changes))
    clipped = Trainer(experiment(train__grad_clip=0.01, **changes))
    batch = batches(plain, 1)[0]
    want, have = recorded_gradients(plain), recorded_gradients(clipped)
    without, metrics = plain.train_step(batch), clipped.train_step(batch)
    norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in want[0].values()))
    assert norm > 0.05 and "grad_norm" not in without
    assert metrics["grad_norm"].item() == pytest.approx(norm, rel=1e-5)
    for name, gradient in want[0].items():
        np.testing.assert_allclose(have[0][name], gradient * 0.01 / norm, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(
        flat(clipped)["puzzle_emb.weights"], flat(plain)["puzzle_emb.weights"]
    )


def test_the_norm_is_in_the_log_where_it_is_clipped():
    Trainer(experiment(run_dir="clipped", train__grad_clip=1e9, train__max_steps=8)).fit()
    trainer = Trainer(experiment(run_dir="plain", train__max_steps=8))
    trainer.fit()
    norms = [line.pop("grad_norm") for line in lines("clipped") if line["kind"] == "train"]
    assert len(norms) == 2 and all(0.01 < norm < 10 for norm in norms)
    keys = [set(line) for line in lines("clipped")]
    assert [key - {"grad_norm"} for key in keys] == [set(line) for line in lines("plain")]


def test_a_norm_beyond_float32_is_not_finite():
    """Each gradient is finite, and their squares are not: the update would be none."""
    trainer = Trainer(experiment(train__grad_clip=1.0, train__compile="never"))
    weights = trainer.model.trained_weights()
    state = {"weights": weights, "optimizer": trainer.train_step.optimizer.state}
    for size, good in ((1e10, True), (1e25, False)):
        huge = tree_map(lambda weight, size=size: mx.full(weight.shape, size), weights)
        functions = trainer.train_step._functions
        finite = functions.update(state, huge, None, None, None, mx.array(0.0), mx.array(1.0))[2]
        assert finite.item() == good


def test_rates_by_name_are_what_an_optimizer_with_that_rate_gives():
    """Factor 0 freezes to the bit; where two patterns match, the last one counts."""
    scale = ["L_level.*=0", "*.mlp.*=0.5", "lm_head.weight = 3"]
    base = Trainer(experiment())
    scaled = Trainer(experiment(train__lr_scale=scale))
    others = {f: Trainer(experiment(train__lr=3e-3 * f)) for f in (0.5, 3.0)}
    before, batch = flat(base), batches(base, 1)[0]
    for trainer in (base, scaled, *others.values()):
        trainer.train_step(batch)
    want, have = flat(base), flat(scaled)
    for name in (name for name in have if not name.startswith(("ema.", "puzzle_emb"))):
        if ".mlp." in name:
            expected = flat(others[0.5])[name]
        elif name.startswith("L_level"):
            assert np.array_equal(have[name], before[name])
            continue
        else:
            expected = flat(others[3.0])[name] if name == "lm_head.weight" else want[name]
        np.testing.assert_allclose(have[name], expected, atol=1e-6, err_msg=name)
        assert name in trainer.model.initial_names or not np.array_equal(have[name], before[name])


def test_a_pattern_without_a_weight_is_refused_before_the_first_step():
    with pytest.raises(
        ConfigError, match=r"train.lr_scale: 'lm_haed\*' matches no weight .*lm_head"
    ):
        Trainer(experiment(train__lr_scale=["lm_haed*=2"]))


# The loss ----------------------------------------------------------------------------------------


def test_smoothing_and_the_weight_of_halting_reach_the_gradient():
    changes = {"loss": "softmax", "label_smoothing": 0.3, "halt_loss_weight": 0.05}
    config = experiment(**{f"train__{name}": value for name, value in changes.items()})
    config.train.compile = "never"  # the gradients are looked at
    trainer = Trainer(config)
    model, found = trainer.model.train(), recorded_gradients(trainer)
    batch = batches(trainer, 1)[0]
    carry = model.begin(model.initial_carry(batch), batch)
    rows, least = model.puzzle_rows(carry), draw_exploration(0, 1, 6, 0.5, 3)

    def loss_fn(weights):
        with model.using(weights):
            left, outputs = model.step(carry, rows, least)
        log_p = outputs.logits - mx.logsumexp(outputs.logits, axis=-1, keepdims=True)
        chosen = mx.take_along_axis(log_p, carry.current.labels[..., None], -1)[..., 0]
        cells = -0.7 * chosen - 0.3 * mx.mean(log_p, axis=-1)
        _, sums = act_loss(outputs, left.current.labels, left.halted, left.steps, "softmax")
        return (mx.sum(mx.mean(cells, axis=-1)) + 0.05 * sums["q_halt_loss"]) / 6

    value, want = mx.value_and_grad(loss_fn)(model.trained_weights())
    metrics = trainer.train_step(batch)
    total = metrics["lm_loss"].item() + 0.05 * metrics["q_halt_loss"].item()
    assert total / 6 == pytest.approx(value.item(), rel=1e-5)
    for name, gradient in tree_flatten(want):
        np.testing.assert_allclose(found[0][name], np.array(gradient), rtol=1e-3, atol=1e-6)


def test_evaluation_does_not_smooth():
    plain = Trainer(experiment(train__loss="softmax")).run.evaluator.run("test")
    smooth = Trainer(experiment(train__loss="softmax", train__label_smoothing=0.3))
    assert smooth.run.evaluator.run("test") == plain


# The schedule ------------------------------------------------------------------------------------


def test_the_cosine_of_a_run_ends_with_it():
    """Of the recipe's 160 steps or of the 40 there are; the first is what it always was."""
    changes = {"train__max_steps": 40, "train__lr_min_ratio": 0.1}
    rates = {}
    for how in ("recipe", "run"):
        step = Trainer(experiment(train__lr_schedule=how, **changes)).train_step
        rates[how] = [step.learning_rate(number) for number in range(1, 41)]
    for how, total in (("recipe", 160), ("run", 40)):
        for number, rate in enumerate(rates[how], start=1):
            cosine = 0.5 * (1 + math.cos(math.pi * (number - 3) / (total - 3)))
            expected = 3e-3 * (number / 3 if number < 3 else 0.1 + 0.9 * cosine)
            assert rate == pytest.approx(expected, rel=1e-12)
    assert rates["run"][-1] == pytest.approx(3e-4) and rates["recipe"][-1] > 2.5e-3


@pytest.mark.parametrize("how, steps, warns", [("run", 3, 1), ("run", 4, 0), ("recipe", 3, 0)])
def test_a_run_that_is_all_warm_up_is_warned_about(how, steps, warns, caplog):
    Trainer(experiment(train__lr_schedule=how, train__max_steps=steps))
    said = [line for line in caplog.messages if line.startswith("train.lr_warmup_steps: 3 are not")]
    assert len(said) == warns


def test_the_share_of_the_run_decides_stages_and_averages():
    train = TrainConfig(curriculum=["0:1x2", "0.15:2x4", ".35:3x6"], ema_start=0.62)
    schedule = Schedule(train, 100)
    stages = [schedule.cycles(step) for step in range(1, 101)]
    assert stages == [(1, 2)] * 15 + [(2, 4)] * 20 + [(3, 6)] * 65
    assert [schedule.averages(step) for step in range(1, 101)] == [False] * 62 + [True] * 38
    schedule.time_share = 0.4  # whichever is further
    assert schedule.cycles(1) == (3, 6) and schedule.share(61) == 0.6
    assert Schedule(TrainConfig(), 100).cycles(50) is None
    assert Schedule(TrainConfig(), 100).averages(1)


def clock(monkeypatch, seconds_a_step: float):
    """A clock that goes on by so much at each step."""
    now = [1000.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def tick(_step: int) -> None:
        now[0] += seconds_a_step

    return tick


def test_hours_end_a_run_and_its_schedule(monkeypatch):
    """Ten steps of six minutes fill an hour, in two stretches; then it is evaluated and done."""
    changes = {"train__lr_schedule": "run", "train__max_hours": 1.0, "train__lr_min_ratio": 0.0}
    changes.update(train__lr_warmup_steps=0, train__log_interval=1, run_dir="run")
    changes.update(train__curriculum=["0:1x1", "0.45:2x1"])
    trainer = Trainer(experiment(**changes))
    tick = clock(monkeypatch, 360.0)

    def stop_at_4(step: int) -> None:
        tick(step)
        if step == 4:
            trainer.stop()

    report = trainer.fit(on_tick=stop_at_4)
    assert report.interrupted and report.steps == 4 and not trainer.finished()
    trainer = Trainer.resume("run")
    assert trainer.progress.seconds == pytest.approx(1440)
    report = trainer.fit(on_tick=tick)
    assert (report.steps, report.taken, report.interrupted, report.reason) == (10, 6, False, "")
    assert [step for step, _ in report.evaluations] == [10]
    rates = [line["lr"] for line in lines("run") if line["kind"] == "train"]
    shares = [max((n + 1) / 160, n / 10) for n in range(10)]  # of the recipe's steps, of the hour
    cosine = [3e-3 * 0.5 * (1 + math.cos(math.pi * share)) for share in shares]
    assert rates == pytest.approx(cosine, rel=1e-6)
    assert trainer.train_step._stage == (2, 1)
    again = Trainer.resume("run")
    assert again.finished()
    assert not Trainer.resume("run", ["train.max_hours=2"]).finished(), "more can be asked for"


def test_without_a_schedule_of_the_run_hours_are_those_of_a_stretch(monkeypatch):
    trainer = Trainer(experiment(run_dir="run", train__max_hours=1.0))
    report = trainer.fit(on_tick=clock(monkeypatch, 1000.0))
    assert report.interrupted and report.reason == "train.max_hours=1 reached"
    assert report.steps == 4 and not report.evaluations
    report = Trainer.resume("run").fit(on_tick=clock(monkeypatch, 1000.0))
    assert report.taken == 4 and report.interrupted


# Curriculum, starts, averages --------------------------------------------------------------------


@pytest.mark.parametrize("compiled", ["never", "always"])
def test_a_stage_trains_as_a_model_of_its_cycles(compiled):
    """To the bit; evaluation always runs the model's own cycles."""
    changes = {"train__compile": compiled, "train__max_steps": 8, "train__lr_schedule": "run"}
    staged = Trainer(experiment(train__curriculum=["0:1x2", "0.5:2x1"], **changes))
    config = experiment(**changes)
    config.model.H_cycles, config.model.L_cycles = 1, 2
    small = Trainer(config)
    own = Trainer(experiment(**changes))
    for batch in batches(staged, 4):
        staged.train_step(batch)
        small.train_step(batch)
    for name, value in flat(small).items():
        assert np.array_equal(flat(staged)[name], value), name
    own.model.update(small.model.parameters())
    assert staged.run.evaluator.run("test") == own.run.evaluator.run("test")
    functions = staged.train_step._functions
    staged.train_step(batches(staged, 5)[4])
    assert staged.train_step._functions is not functions, "compiled once when a stage begins"
    functions = staged.train_step._functions
    staged.train_step(batches(staged, 6)[5])
    assert staged.train_step._functions is functions


def test_the_average_begins_where_it_is_told_to():
    """Before, it is the weights themselves."""
    changes = {"train__max_steps": 10, "train__lr_schedule": "run"}
    late = Trainer(experiment(train__ema_start=0.5, **changes))
    for number, batch in enumerate(batches(late, 7), start=1):
        held = {n: np.array(a) for n, a in tree_flatten(late.train_step.average.weights)}
        late.train_step(batch)
        for name, average in tree_flatten(late.train_step.average.weights):
            weight = flat(late)[name]
            expected = weight if number <= 5 else 0.1 * weight + 0.9 * held[name]
            np.testing.assert_allclose(np.array(average), expected, atol=1e-6, err_msg=name)
            if number <= 5:
                assert np.array_equal(np.array(average), weight)


@pytest.mark.parametrize("size", [1, 4])
def test_random_starts_are_the_same_for_any_micro_batches(size):
    changes = {"model__start": "random"}
    whole = Trainer(experiment(**changes))
    parts = Trainer(experiment(train__micro_batch_size=size, **changes))
    fixed = Trainer(experiment())
    for batch in batches(whole, 3):
        for trainer in (whole, parts, fixed):
            metrics = trainer.train_step(batch)
        one, other = ([np.array(mx.concatenate([c.latents[1] for c in t.train_step.carries]))
                       for t in (whole, parts)])  # fmt: skip
        np.testing.assert_allclose(other, one, atol=2e-3)
        assert metrics["count"].item() >= 0
    latents = np.array(fixed.train_step.carries[0].latents[1])
    assert np.abs(latents - one).max() > 0.1, "they start from elsewhere"
    halted = np.array(whole.train_step.carries[0].halted)
    assert halted.shape == (6,)


# Settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, says",
    [
        ({"optimizer": "moun"}, "train.optimizer: 'moun' is not one of .*; did you mean 'muon'"),
        ({"loss": "softmix"}, "train.loss: 'softmix' is not one of .*; did you mean 'softmax'"),
        ({"label_smoothing": 0.1}, "train.label_smoothing: train.loss stablemax has none"),
        ({"label_smoothing": 1.0}, "train.label_smoothing: must be less than 1"),
        ({"halt_loss_weight": -1.0}, "train.halt_loss_weight: must be at least 0"),
        ({"grad_clip": 0.0}, "train.grad_clip: must be more than 0"),
        ({"muon_steps": 0}, "train.muon_steps: must be at least 1"),
        ({"muon_momentum": 1.0}, "train.muon_momentum: must be less than 1"),
        ({"late_rows": 1.5}, "train.late_rows: must be at most 1"),
        ({"late_rows": 0.5, "late_steps": 3}, r"needs 1 < model.halt_max_steps \(3\) < late_steps"),
        ({"ema_start": 1.0}, "train.ema_start: must be less than 1"),
        ({"lr_schedule": "runs"}, "train.lr_schedule: 'runs' is not one of .*mean 'run'"),
        ({"lr_scale": ["lm_head"]}, "train.lr_scale: 'lm_head' is not a pattern"),
        ({"lr_scale": ["lm_head=-1"]}, "train.lr_scale: 'lm_head=-1' is not"),
        ({"lr_scale": ["lm_head=nan"]}, "train.lr_scale: 'lm_head=nan' is not"),
        ({"lr_scale": ["=2"]}, "train.lr_scale: '=2' is not"),
        ({"curriculum": ["0:1x2", "half:2x2"]}, "train.curriculum: 'half:2x2' is not a share"),
        ({"curriculum": ["0:0x2"]}, "train.curriculum: '0:0x2' is not"),
        ({"curriculum": ["0.1:1x2"]}, "train.curriculum: the first share must be 0"),
        ({"curriculum": ["0:1x2", "0.5:2x2", "0.5:3x3"]}, "each larger than the one before"),
        ({"curriculum": ["0:1x2", "1:2x2"]}, "the last below 1, not 0, 1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(change, says):
    config = experiment(**{f"train__{name}": value for name, value in change.items()})
    with pytest.raises(ConfigError, match=says) as caught:
        Trainer(config)
    assert len(str(caught.value).splitlines()) == 1


def test_late_rows_go_on_after_the_answer():
    """Half of six rows: they halt at 10, 7 and 4 steps whatever they believe, the others by 3."""
    changes = {"train__late_rows": 0.5, "train__late_steps": 10, "train__max_steps": 12}
    trainer = Trainer(experiment(**changes))
    most = np.zeros(6, dtype=int)
    for batch in batches(trainer, 12):
        trainer.train_step(batch)
        (carry,) = trainer.train_step.carries
        done, steps = np.array(carry.halted), np.array(carry.steps)
        assert set(steps[done & (steps > 3)]) <= {10, 7, 4}
        most = np.maximum(most, steps)
    assert most[[1, 3, 5]].tolist() == [10, 7, 4] and most[[0, 2, 4]].max() <= 3


def test_late_rows_need_a_model_that_goes_on():
    config = experiment(train__late_rows=0.5)
    config.model = trm.TransformersBaselineConfig(hidden_size=16, num_heads=2, halt_max_steps=1)
    with pytest.raises(ConfigError, match="train.late_rows: needs 1 < model.halt"):
        Trainer(config)


def test_a_model_without_cycles_has_no_curriculum():
    config = experiment(train__curriculum=["0:1x2"])
    config.model = trm.TransformersBaselineConfig(hidden_size=16, num_heads=2)
    with pytest.raises(ConfigError, match="train.curriculum: model transformers_baseline has no"):
        Trainer(config)
    config.model = trm.TRMHier6Config(hidden_size=16, num_heads=2)
    with pytest.raises(ConfigError, match="train.curriculum: model trm_hier6: 1 H_cycles and 2 L"):
        Trainer(config)


def test_a_curriculum_can_be_written_in_yaml_and_as_an_override(tmp_path):
    text = "task: {name: marks}\nmodel: {name: trm, hidden_size: 16, num_heads: 2}\n"
    path = tmp_path / "c.yaml"
    path.write_text(text + "train: {curriculum: [0:1x2, 0.15:2x4], lr_scale: [embed*=0.1]}\n")
    config = trm.load_config(path)
    assert [tuple(stage) for stage in config.train.stages()] == [(0.0, 1, 2), (0.15, 2, 4)]
    assert config.train.rate_factors() == [("embed*", 0.1)]
    config = trm.load_config(path, ["train.curriculum=[0:3x3, 0.9:1x1]"])
    assert config.train.curriculum == ["0:3x3", "0.9:1x1"]
    trm.save_config(config, tmp_path / "saved.yaml")
    assert trm.load_config(tmp_path / "saved.yaml") == config
