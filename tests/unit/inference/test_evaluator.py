"""The evaluator: its figures do not depend on how the puzzles are cut into batches."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from peaks import peak_bytes

import mlx_trm as trm
from mlx_trm.config.loading import TrainConfig
from mlx_trm.config.sections import EvalConfig, ExperimentConfig, TaskConfig, TaskSpec
from mlx_trm.errors import ConfigError
from mlx_trm.inference.evaluator import Evaluator, wilson_interval
from mlx_trm.inference.step import should_compile
from mlx_trm.models import TRM, TRMConfig
from mlx_trm.models.carry import Batch
from mlx_trm.models.memory import (
    _evaluation_row_bytes,
    cap_evaluation_rows,
    count_evaluation_parts,
)
from mlx_trm.tasks import Scorer

SPEC = trm.TaskSpec(vocab_size=6, seq_len=5, num_puzzle_identifiers=1)
MODEL = trm.TRMConfig(
    hidden_size=16,
    num_heads=2,
    swiglu_multiple=16,
    L_layers=1,
    H_cycles=1,
    L_cycles=1,
    mlp_t=True,
    pos_encodings="none",
    puzzle_emb_len=1,
    halt_max_steps=3,
    forward_dtype="float32",
)


class Digits(trm.Task):
    """Twenty-three random puzzles, and a scorer that keeps what it was shown."""

    @property
    def spec(self):
        return SPEC

    def groups(self, split, rng):
        for _ in range(23):
            inputs = rng.integers(1, 6, (1, 5)).astype(np.uint8)
            labels = inputs.copy()
            labels[0, 4] = 0  # a cell that does not count
            yield [trm.Puzzle(None, inputs, labels)]

    def scorer(self, source=None):
        assert source.name == "all" and source.split == "test" and source.first_identifier == 0
        return self.Seen()

    class Seen(Scorer):
        """Counts rows and cells that keep the input's token."""

        def __init__(self):
            self.rows = self.kept = 0
            self.last = -1

        def update(self, rows):
            assert rows.inputs.shape == rows.labels.shape == rows.predictions.shape
            assert rows.q_halt.shape == rows.puzzle_identifiers.shape == (len(rows.inputs),)
            assert (np.diff([self.last, *rows.places]) > 0).all() and rows.places[-1] < 23
            self.last = rows.places[-1]
            self.rows += len(rows.inputs)
            self.kept += int((rows.inputs == rows.predictions).sum())

        def files(self):
            return {"seen.txt": str(self.rows)}

        def result(self):
            return {"rows_seen": self.rows, "kept": self.kept / self.rows}


@pytest.fixture(name="evaluator")
def make_evaluator(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path))

    def make(batch_size: int = 23, model: trm.TRMConfig = MODEL, **changes) -> Evaluator:
        task_config = TaskConfig("digits")
        train = TrainConfig(batch_size=batch_size)
        config = ExperimentConfig(task_config, model, train, EvalConfig(**changes))
        built = trm.TRM(model, SPEC, seed=0)
        built.q_head.weight = mx.random.normal((2, model.hidden_size), key=mx.random.key(5))
        return Evaluator(built, config, Digits(task_config, 0))

    return make


def test_metrics_do_not_depend_on_the_batch_size(evaluator):
    used = evaluator(23)
    whole = used.run("test")["all"]
    assert used.files == {"all": {"seen.txt": "23"}}
    assert whole["count"] == whole["rows_seen"] == 23
    for batch_size in (1, 4, 10, 40):
        assert evaluator(batch_size).run("test")["all"] == pytest.approx(whole, rel=1e-5)


def test_metrics_are_those_of_the_last_step(evaluator):
    made = evaluator()
    found = made.run("test")["all"]
    dataset = made.task.dataset("test")
    _, arrays, _ = next(dataset.eval_batches(23))
    batch = Batch(*(mx.array(arrays[name]) for name in Batch._fields))
    model = made.model.eval()
    carry = model.initial_carry(batch)
    for _ in range(3):
        carry, outputs = model(carry, batch)
    assert np.array(carry.halted).all()
    right = np.array(mx.argmax(outputs.logits, -1) == batch.labels)
    counted = np.array(batch.labels) != -100
    assert not counted[:, 4].any() and counted[:, :4].all()
    exact = (right | ~counted).all(-1)
    assert found["accuracy"] == pytest.approx((right & counted).sum() / 23 / 4)
    assert found["exact_accuracy"] == pytest.approx(exact.mean())
    assert found["q_halt_accuracy"] == pytest.approx(
        ((np.array(outputs.q_halt) >= 0) == exact).mean()
    )
    assert found["steps"] == 3


def test_more_steps_than_training_allows(evaluator):
    made = evaluator()
    more = made.run("test", steps=7)["all"]
    assert more["steps"] == 7
    assert evaluator(steps=7).run("test")["all"] == more
    longer = dataclasses.replace(MODEL, halt_max_steps=7)
    assert evaluator(model=longer).run("test")["all"] == pytest.approx(more)
    assert made.run("test")["all"]["lm_loss"] != more["lm_loss"]


def test_a_sample_is_seeded(evaluator):
    made = evaluator()
    sample = made.run("test", max_examples=9)["all"]
    assert sample["count"] == 9
    assert made.run("test", max_examples=9)["all"] == sample
    assert evaluator(max_examples=9).run("test")["all"] == pytest.approx(sample)
    assert made.run("test", max_examples=500)["all"]["count"] == 23


def test_progress_counts_puzzles(evaluator):
    seen = []
    evaluator(10).run("test", on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 23), (20, 23), (23, 23)]


def test_the_model_s_mode_is_restored(evaluator):
    made = evaluator()
    made.model.train()
    made.run("test", max_examples=2)
    assert made.model.training


def test_data_of_other_dimensions_are_refused(evaluator):
    made = evaluator()
    made.model = trm.TRM(MODEL, trm.TaskSpec(vocab_size=9, seq_len=7), seed=0)
    with pytest.raises(ConfigError) as caught:
        made.run("test")
    assert "vocab_size is 6, the model was made for 9" in str(caught.value)
    assert "seq_len is 5, the model was made for 7" in str(caught.value)


@pytest.mark.parametrize(
    "right, count, low, high",
    [
        (0, 32, 0.0, 0.10718),
        (16, 32, 0.33629, 0.66371),
        (32, 32, 0.89282, 1.0),
        (7, 10, 0.39677, 0.89221),
    ],
)
def test_wilson_interval_against_published_values(right, count, low, high):
    found = wilson_interval(right, count)
    assert found == pytest.approx((low, high), abs=2e-4)


def test_compile_setting():
    assert should_compile("always") and not should_compile("never")
    small = TRM(TRMConfig(hidden_size=16, num_heads=2), TaskSpec(vocab_size=11, seq_len=4))
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    assert should_compile("auto") == on_gpu == should_compile("auto", small)
    large = TRM(TRMConfig(), TaskSpec(vocab_size=11, seq_len=4))
    assert should_compile("auto", large) and not should_compile("never", large)


def test_no_more_rows_than_fit_are_evaluated_at_once(evaluator, monkeypatch):
    """By the estimate; the figures are the same."""
    evaluator = evaluator(20)
    done = []
    want = evaluator.run("test", on_progress=lambda count, total: done.append(count))
    assert done == [20, 23]
    monkeypatch.setattr("mlx_trm.models.memory.device_memory", lambda: 1 << 18)
    fitting = cap_evaluation_rows(evaluator.model, 20)
    assert 1 <= fitting < 20
    del done[:]
    found = evaluator.run("test", on_progress=lambda count, total: done.append(count))
    assert done[0] == fitting and found["all"] == pytest.approx(want["all"], rel=1e-5)


@pytest.mark.parametrize("compiled", ["always", "never"])
def test_a_memory_limit_splits_batches_and_nothing_else(evaluator, monkeypatch, compiled):
    """``eval.memory_limit_gb``: the parts one after the other, the same figures, less memory."""
    monkeypatch.setenv("MLX_TRM_CPU_STREAMS", "1")
    wide = dataclasses.replace(MODEL, hidden_size=64)
    peaks, found = [], []
    for limit in (None, 2e-4):
        each = evaluator(20, wide, memory_limit_gb=limit)
        each.config.train.compile = compiled
        each = Evaluator(each.model, each.config, each.task)
        each.run("test")
        peaks.append(peak_bytes(lambda each=each: found.append(each.run("test")["all"])))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert peaks[1] < 0.7 * peaks[0]


@pytest.mark.parametrize("row", [425_190, 1_003, 3 << 20, 7 << 30])
def test_the_limit_that_is_named_is_enough(evaluator, monkeypatch, row):
    """Whatever it is rounded to: who sets it is not refused again."""
    model = evaluator().model
    monkeypatch.setattr("mlx_trm.models.memory._evaluation_row_bytes", lambda model: row)
    for rows in (1, 2, 3, 8, 64, 333, 768, 1217):
        with pytest.raises(ConfigError, match="set at least") as caught:
            count_evaluation_parts(model, rows, 1e-9)
        named = float(str(caught.value).split("set at least ")[1])
        assert count_evaluation_parts(model, rows, named) >= 1
        assert named < 1.15 * (rows / 4 + 1) * row / 2**30 + 1e-12


def test_parts_are_as_few_as_the_limit_allows(evaluator):
    model = evaluator().model
    row = _evaluation_row_bytes(model)
    gib = row / 2**30
    assert count_evaluation_parts(model, 8, None) == 1
    counts = [count_evaluation_parts(model, 8, gib * rows * 1.0001) for rows in (10, 6, 5, 4, 3)]
    assert counts == [1, 2, 3, 4, 8]  # a quarter of a row's stays for each of the 8
    with pytest.raises(
        ConfigError, match=r"eval.memory_limit_gb: .* too few for a batch of 8; set"
    ):
        count_evaluation_parts(model, 8, gib * 2.9)
    with pytest.raises(ConfigError, match="memory_limit_gb"):
        evaluator(20, memory_limit_gb=1e-9).run("test")
