"""The trainer: what a step changes, what a run writes, and how it stops."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from child_processes import wait_until
from marks import batches, experiment, flat
from mlx.utils import tree_flatten

import mlx_trm as trm
from mlx_trm.errors import CheckpointError, ConfigError, TRMError
from mlx_trm.models import memory
from mlx_trm.models.carry import draw_exploration
from mlx_trm.models.losses import act_loss
from mlx_trm.system import backend
from mlx_trm.system.processes import Processes
from mlx_trm.training.optim import EMA, AdamATan2, sign_sgd_rows
from mlx_trm.training.prepare import make_one_ahead, prepare
from mlx_trm.training.trainer import Trainer


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "evaluated, processes, expected", [(None, 1, "6"), (512, 1, "4"), (None, 2, "4")]
)
def test_a_command_s_small_steps_free_memory_seldom(evaluated, processes, expected, monkeypatch):
    """It is said by the size of the largest batch, before MLX computes anything.

    Several processes have sent each other arrays by then, for which MLX has read what was said.
    """
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(backend, "_SAID", {})
    monkeypatch.setenv("MLX_USE_CUDA_GRAPHS", "0")
    monkeypatch.setenv(backend.OPERATIONS, "")
    monkeypatch.delenv(backend.OPERATIONS)
    backend.prefer_direct_launches()
    found = []

    def build(*_, **__):
        found.append(os.environ[backend.OPERATIONS])
        raise ConfigError("enough")

    together = Processes()
    together.size = processes
    monkeypatch.setattr(together, "agree", lambda *_: None)
    monkeypatch.setattr(Processes, "start", lambda: together)
    monkeypatch.setattr("mlx_trm.training.prepare.build_model", build)
    config = experiment()
    config.eval.batch_size = evaluated
    with pytest.raises(ConfigError, match="enough"):
        Trainer(config)
    assert found == [expected]


def test_a_step_is_the_sum_of_its_parts():
    """Three steps of the trainer against loss, gradients and optimisers called one by one."""
    trainer, other = Trainer(experiment()), Trainer(experiment())
    model, train = other.model.train(), other.config.train
    adam = AdamATan2(0.0, (train.beta1, train.beta2), train.weight_decay)
    average = EMA(model.trained_weights(), train.ema_rate)
    carry = None
    for number, batch in enumerate(batches(trainer, 3), start=1):
        metrics = trainer.train_step(batch)
        carry = model.initial_carry(batch) if carry is None else carry
        carry = model.begin(carry, batch)
        ids = carry.current.puzzle_identifiers
        halting = model.config.halt_exploration_prob, model.config.halt_max_steps
        least = draw_exploration(other.config.seed, number, 6, *halting)

        def loss_fn(weights, rows, carry=carry, least=least):
            with model.using(weights):
                left, outputs = model.step(carry, rows, least)
            loss, sums = act_loss(outputs, carry.current.labels, left.halted, left.steps)
            return loss / 6, left.pack(), sums

        (_, packed, sums), (grads, row_grads) = mx.value_and_grad(loss_fn, (0, 1))(
            model.trained_weights(), model.puzzle_rows(carry)
        )
        adam.learning_rate = train.lr * min(1.0, number / 3)
        model.update(adam.apply_gradients(grads, model.trained_weights()))
        average.update(model.trained_weights())
        rows = sign_sgd_rows(
            model.puzzle_emb.weights[ids], row_grads, ids, 1e-2 * min(1.0, number / 3), 1.0
        )
        model.puzzle_emb.weights[ids] = rows
        carry = trm.Carry.unpack(packed)
        for name, value in sums.items():
            assert metrics[name].item() == pytest.approx(value.item(), rel=1e-5), name
    expected = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    ours = flat(trainer)
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5, err_msg=name)
    for name, value in tree_flatten(average.weights):
        np.testing.assert_allclose(ours[f"ema.{name}"], np.array(value), atol=1e-5)


def test_a_compiled_step_equals_a_plain_one():
    plain = Trainer(experiment(train__compile="never"))
    compiled = Trainer(experiment(train__compile="always"))
    for batch in batches(plain, 4):
        one, two = plain.train_step(batch), compiled.train_step(batch)
        for name, value in one.items():
            assert two[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name
    ours, theirs = flat(compiled), flat(plain)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=2e-4, err_msg=name)
    assert compiled.train_step.learning_rate(4) == plain.train_step.learning_rate(4)
    rate = compiled.train_step.optimizer.learning_rate.item()
    assert rate == pytest.approx(3e-3), "the warm-up is not frozen in at the first trace"


def test_only_the_rows_of_the_batch_move_in_the_table():
    trainer = Trainer(experiment(train__lr_warmup_steps=0))
    table = np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32)
    trainer.model.puzzle_emb.weights = mx.array(table)
    batch = batches(trainer, 1)[0]
    trainer.train_step(batch)
    moved = set(np.array(batch.puzzle_identifiers).tolist())
    after = np.array(trainer.model.puzzle_emb.weights)
    assert 0 < len(moved) < 9
    for row in range(9):
        if row in moved:
            step = after[row] - table[row] * (1 - 1e-2)
            np.testing.assert_allclose(np.abs(step), 1e-2, atol=1e-6)
        else:
            assert np.array_equal(after[row], table[row])


@pytest.mark.parametrize(
    "freeze, trained, table",
    [("none", True, True), ("weights", False, True), ("puzzle_emb", True, False)],
)
def test_freeze(freeze, trained, table):
    trainer = Trainer(experiment(train__freeze=freeze))
    before = flat(trainer)
    for batch in batches(trainer, 2):
        trainer.train_step(batch)
    after = flat(trainer)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert ("L_level.layers.0.mlp.down_proj.weight" in changed) == trained
    assert ("ema.lm_head.weight" in changed) == trained
    assert ("puzzle_emb.weights" in changed) == table
    assert not {"H_init", "L_init"} & changed


def test_training_learns_its_puzzles():
    config = experiment(train__lr=1e-2, train__puzzle_emb_lr=0.1, train__epochs=2400)
    config.train.max_steps, config.train.puzzle_emb_weight_decay = 300, 0.1
    trainer = Trainer(config)
    before = trainer.run.evaluator.run("train")["all"]["accuracy"]
    trainer.fit()
    after = trainer.run.evaluator.run("train", weights=trainer.train_step.average.weights)["all"][
        "accuracy"
    ]
    # Chance is 0.2, and about 0.3 without knowing which puzzle it is.
    assert before < 0.35 and after > 0.6


def test_a_seed_decides_every_weight_and_metric(tmp_path):
    def lines(name: str, seed: int) -> tuple:
        trainer = Trainer(experiment(run_dir=str(tmp_path / name), seed=seed, train__max_steps=6))
        trainer.fit()
        read = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        kept = [{k: v for k, v in line.items() if k != "steps_per_second"} for line in read]
        for line in kept:
            line.pop("peak_memory", None)
        return kept, flat(trainer)

    one, two, three = lines("a", 0), lines("b", 0), lines("c", 1)
    assert one[0] == two[0]
    assert all(np.array_equal(value, two[1][name]) for name, value in one[1].items())
    assert one[0] != three[0]


def test_what_a_run_writes(tmp_path):
    config = experiment(run_dir=str(tmp_path / "run"), eval__interval=10, checkpoint__keep=2)
    events, steps = [], []
    report = Trainer(config).fit(on_eval=events.append, on_step=steps.append)
    # Ten passes over 8 groups, of which each batch of 6 takes one puzzle's 4 examples and 2 of
    # another's: 40 batches, three times.
    assert report.steps == 120 and not report.interrupted
    assert [event["step"] for event in events] == [40, 80, 120]
    assert [step.step for step in steps][:3] == [4, 8, 12] and steps[-1].step == 120
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    best = max(events, key=lambda event: event["metrics"]["all"]["exact_accuracy"])["step"]
    assert names == {
        ".lock", "config.yaml", "metrics.jsonl", "latest", "best", "step_80", "step_120",
        f"step_{best}",
    }  # fmt: skip
    assert (run / "best").readlink() == Path(f"step_{best}")
    assert (run / "latest").is_symlink() and not Path((run / "latest").readlink()).is_absolute()
    assert (run / "latest").resolve().name == "step_120" == report.checkpoint.name
    read = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    evals = [line for line in read if line["kind"] == "eval"]
    assert [line["step"] for line in evals] == [40, 80, 120]
    assert evals[-1]["exact_accuracy"] == events[-1]["metrics"]["all"]["exact_accuracy"]
    trains = [line for line in read if line["kind"] == "train"]
    assert {"step", "lm_loss", "q_halt_loss", "accuracy", "exact_accuracy", "lr"} <= set(trains[0])
    assert trains[0]["lr"] == pytest.approx(3e-3)
    assert trm.load_config(str(run / "config.yaml")) == config


def test_evaluation_uses_the_average(tmp_path):
    trainer = Trainer(experiment(run_dir=str(tmp_path / "run"), train__max_steps=20))
    report = trainer.fit()
    averaged = report.evaluations[-1][1]["all"]
    raw = trainer.run.evaluator.run("test")["all"]
    again = trainer.run.evaluator.run("test", weights=trainer.train_step.average.weights)["all"]
    assert averaged == again
    assert raw["lm_loss"] != averaged["lm_loss"]
    ema = trm.load_checkpoint(tmp_path / "run")
    assert trm.Evaluator(ema.model, ema.config).run("test")["all"] == pytest.approx(averaged)
    loaded = trm.load_checkpoint(tmp_path / "run", weights="raw")
    assert trm.Evaluator(loaded.model, loaded.config).run("test")["all"] == pytest.approx(raw)


@pytest.mark.parametrize(
    "steps, limit, count", [(1, None, 2), (3, None, 6), (30, None, 32), (3, 9, 9), (500, None, 32)]
)
def test_a_short_run_ends_with_a_short_evaluation(steps, limit, count):
    """6 puzzles a step and 3 steps a puzzle: one step pays for evaluating two puzzles of the 32."""
    report = Trainer(experiment(train__max_steps=steps, eval__max_examples=limit)).fit()
    assert report.evaluations[-1][1]["all"]["count"] == count


def test_stop_finishes_the_step_and_saves(tmp_path):
    trainer = Trainer(experiment(run_dir=str(tmp_path / "run")))
    report = trainer.fit(on_step=lambda step: trainer.stop() if step.step == 8 else None)
    assert report.interrupted and report.steps == 8
    assert report.checkpoint == tmp_path / "run" / "step_8"
    assert trm.load_checkpoint(tmp_path / "run").step == 8
    assert not report.evaluations


def test_a_stopped_trainer_can_go_on(tmp_path):
    trainer = Trainer(experiment(run_dir=str(tmp_path / "one"), train__max_steps=12))
    trainer.fit(on_step=lambda step: trainer.stop() if step.step == 4 else None)
    trainer.config.run_dir = str(tmp_path / "two")
    report = trainer.fit()
    assert report.steps == 12 and not report.interrupted


def test_steps_of_the_recipe_are_counted_as_the_reference_counts_them():
    """floor(epochs * groups * mean / batch), in that order: 30 * 8 * 4 / 6."""
    trainer = Trainer(experiment())
    assert trainer.train_step.schedule.total_steps == int(30 * 8 * 4.0 / 6) == 160


def test_checkpoints_every_so_many_steps(tmp_path):
    config = experiment(
        run_dir=str(tmp_path / "run"), checkpoint__every=4, checkpoint__keep=9, train__max_steps=10
    )
    Trainer(config).fit()
    saved = sorted(path.name for path in (tmp_path / "run").glob("step_*"))
    assert saved == ["step_10", "step_4", "step_8"]


def test_default_run_folders_do_not_collide(tmp_path):
    folders = [Trainer(experiment(train__max_steps=1)).fit().run_dir for _ in range(3)]
    assert [str(folder) for folder in folders] == ["runs/marks", "runs/marks-2", "runs/marks-3"]


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    Trainer(experiment(run_dir=str(tmp_path / "run"), train__max_steps=2)).fit()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="holds a run already"):
        Trainer(experiment(run_dir=str(tmp_path / "run"))).fit()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_where_the_run_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(ConfigError, match="is a file"):
        Trainer(experiment(run_dir=str(tmp_path / "run"))).fit()
    assert (tmp_path / "run").read_text() == "precious"


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = Trainer(experiment(run_dir=str(tmp_path / "run")))
    trainer.model.lm_head.weight = trainer.model.lm_head.weight * float("nan")
    with pytest.raises(TRMError, match="step 1: the loss or a gradient is not finite"):
        trainer.fit()


def test_a_batch_that_no_epoch_fills_is_refused():
    with pytest.raises(ConfigError, match="train.batch_size: 700 is more than"):
        Trainer(experiment(train__batch_size=700, train__epochs=10))


def test_a_batch_that_cannot_fit_names_the_override(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 5_000_000)
    with pytest.raises(ConfigError, match=r"train.batch_size: .* use train.micro_batch_size=auto"):
        Trainer(experiment(train__batch_size=6000, train__epochs=3000))
    Trainer(experiment())


def test_softmax_and_no_average_train_too():
    trainer = Trainer(experiment(train__loss="softmax", train__ema=False))
    assert trainer.train_step.average is None
    first = [trainer.train_step(batch)["lm_loss"].item() for batch in batches(trainer, 30)]
    assert np.mean(first[-5:]) < np.mean(first[:5])


def test_a_model_without_puzzle_vectors_trains():
    config = experiment(train__max_steps=5)
    config.model = dataclasses.replace(config.model, puzzle_emb_ndim=0, puzzle_emb_len=0)
    report = Trainer(config).fit()
    assert report.steps == 5


def test_a_full_disk_ends_in_one_line(tmp_path, monkeypatch):
    trainer = Trainer(experiment(run_dir=str(tmp_path / "run"), train__max_steps=2))

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlx_trm.runs.checkpoint.save_config", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        trainer.fit()
    assert not list((tmp_path / "run").glob("*step*"))


def test_batches_are_made_one_ahead():
    made = []

    def source(count, fails=False):
        for number in range(count):
            made.append(number)
            yield number
        if fails:
            raise ValueError("the last one is broken")

    assert list(make_one_ahead(source(5))) == [0, 1, 2, 3, 4] and not list(
        make_one_ahead(source(0))
    )
    made.clear()
    items = make_one_ahead(source(3))
    assert next(items) == 0
    wait_until(lambda: len(made) >= 2)
    assert made == [0, 1], "the second is made while the first is in use, and no third one"
    items.close()
    taken = []
    with pytest.raises(ValueError, match="the last one is broken"):
        for item in make_one_ahead(source(2, fails=True)):
            taken.append(item)
    assert taken == [0, 1]


def test_a_test_set_without_answers(tmp_path: Path) -> None:
    """Such as a contest's: it has no accuracy, so none is the best, and training goes on."""
    trm.build_task(experiment().task).build(tmp_path / "data")
    labels = tmp_path / "data" / "test" / "all__labels.npy"
    np.save(labels, np.zeros_like(np.load(labels)))
    (tmp_path / "data" / "build.json").unlink()  # it says what the file was
    config = experiment(run_dir=str(tmp_path / "run"), task__data_dir=str(tmp_path / "data"))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=2))
    trainer = Trainer(config)
    report = trainer.fit()
    assert report.steps == 2 and report.evaluations[0][1]["all"] == {"count": 0}
    assert trainer.progress.best is None and trainer.progress.without_better == 0


def test_an_old_mlx_on_a_mac_is_told_of(monkeypatch, caplog):
    """There an error of the GPU ends the process; not yet run on Metal."""
    monkeypatch.setattr("mlx_trm.training.prepare.on_metal", lambda: True)
    for version, told in (("0.29.3", True), ("0.32.4", False)):
        caplog.clear()
        monkeypatch.setattr(mx, "__version__", version)
        prepare(experiment())
        assert ("ends the whole process" in caplog.text) == told
