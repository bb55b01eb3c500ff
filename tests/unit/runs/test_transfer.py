"""Weights of one run in another model, and rows of the puzzle table that follow their puzzles."""

import dataclasses
import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marks import Marks, MarksConfig, batches, experiment, flat

import mlx_trm as trm
from mlx_trm.convert import main as convert
from mlx_trm.datasets.names import pack_names, row_names, unpack_names
from mlx_trm.datasets.writing import write_splits
from mlx_trm.errors import CheckpointError, ConfigError, DataError
from mlx_trm.evaluate import main as evaluate
from mlx_trm.models import named_arrays
from mlx_trm.runs.layout import ROW_NAMES
from mlx_trm.runs.puzzle_rows import (
    TABLE,
    grow_table,
    match_names,
    read_row_names,
    reset_table,
    set_table,
    take_rows,
)
from mlx_trm.runs.transfer import Weights, read_weights, transfer_weights
from mlx_trm.train import main as train
from mlx_trm.training.trainer import Trainer

NAMES = ["<blank>"] + [f"puzzle {number}" for number in range(8)]
SPEC = trm.TaskSpec(vocab_size=6, seq_len=5, num_puzzle_identifiers=9)


@pytest.fixture(autouse=True)
def private_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def random_model(seed=0, spec=SPEC, **changes):
    """A model whose every weight, the puzzle table too, is random."""
    model = trm.build_model(dataclasses.replace(experiment().model, **changes), spec, seed)
    if model.config.puzzle_emb_ndim:
        shape = model.puzzle_emb.weights.shape
        model.puzzle_emb.weights = mx.random.normal(shape, key=mx.random.key(seed))
    return model


def arrays_of(model):
    return {name: mx.array(array) for name, array in named_arrays(model.parameters())}


def same(one, two):
    return np.array_equal(np.array(one), np.array(two))


def reordered(folder, order, left_out=()):
    """Build the toy data with the puzzles in another order, or some left out."""
    shutil.rmtree(folder, ignore_errors=True)

    def groups(split, number):
        found = list(Marks(MarksConfig()).groups(split, np.random.default_rng([0, number])))
        return [found[i] for i in order if i not in left_out]

    write_splits([(s, groups(s, n)) for n, s in enumerate(("train", "test"))], folder, SPEC)
    return folder


def saved(tmp_path, names=tuple(NAMES), model=None):
    """A run folder with a random model."""
    packed = None if names is None else pack_names(names)
    config = experiment(task__data_dir=str(reordered(tmp_path / "own", range(8))))
    trm.save_checkpoint(tmp_path / "run", model or random_model(), config, 5, row_names=packed)
    return tmp_path / "run"


# Tables ------------------------------------------------------------------------------------------


@given(st.permutations(range(9)), st.integers(0, 8), st.sampled_from(["mean", "zero"]))
def test_every_name_keeps_its_row(order, dropped, new_rows):
    """Any order, any names left out, and one that is new."""
    table = np.random.default_rng(1).standard_normal((9, 4)).astype(np.float32)
    want = [NAMES[i] for i in order][dropped:] + ["new"]
    found = match_names(NAMES, want)
    result = np.array(take_rows(mx.array(table), found, new_rows))
    for name, row in zip(want[:-1], result):
        assert np.array_equal(row, table[NAMES.index(name)])
    expected = table.mean(axis=0) if new_rows == "mean" else np.zeros(4)
    np.testing.assert_allclose(result[-1], expected, atol=1e-6)


def test_a_name_that_stands_twice_is_matched_in_order():
    have = ["<blank>", "a", "b", "a"]
    assert match_names(have, ["a", "a", "a", "c"]).tolist() == [1, 3, 3, -1]


def test_a_reset_table_is_the_mean_as_in_the_reference():
    table = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float32) + 7
    result = np.array(reset_table(mx.array(table), 4))
    assert result.shape == (4, 3)
    np.testing.assert_allclose(result, np.tile(table.astype(np.float64).mean(0), (4, 1)), rtol=1e-6)


def test_a_grown_table_keeps_its_rows():
    table = mx.array([[1.0, 2.0], [3.0, 4.0]])
    assert grow_table(table, 2).tolist() == [[1, 2], [3, 4], [2, 3], [2, 3]]
    assert grow_table(table, 1, "zero").tolist() == [[1, 2], [3, 4], [0, 0]]
    with pytest.raises(ValueError, match="new_rows must be"):
        grow_table(table, 1, "random")


def test_a_table_is_set_with_the_models_spec():
    model = random_model()
    set_table(model, mx.ones((12, 16)))
    assert model.spec.num_puzzle_identifiers == 12
    with pytest.raises(ValueError, match="have 16 numbers"):
        set_table(model, mx.ones((12, 8)))


# Names -------------------------------------------------------------------------------------------


def test_packed_names():
    names = ["<blank>", "a|||t1|||0213", "ü"]
    assert unpack_names(pack_names(names)) == names
    assert pack_names(names) == pack_names(list(names))
    for broken in (b"", b"text", pack_names(names)[:-3], pack_names(["a"])[:-9] + b"x" * 9):
        with pytest.raises(ValueError):
            unpack_names(broken)


def test_names_of_the_rows_of_a_dataset(tmp_path):
    """Of one folder, of two whose identifiers are numbered on, and of one that lost them."""
    one, two = reordered(tmp_path / "a", range(8)), reordered(tmp_path / "b", [3, 1])
    assert row_names(trm.PuzzleDataset.load(one, "train")) == NAMES
    both = trm.PuzzleDataset.load([str(one), str(two)], "test")
    assert row_names(both) == [*NAMES, "puzzle 3", "puzzle 1"]
    (two / "identifiers.json").write_text("[")
    with pytest.raises(DataError, match="is not JSON"):
        row_names(both)
    (two / "identifiers.json").unlink()
    assert row_names(both) is None
    sudoku = trm.load_config("sudoku_tiny.yaml", ["task.train_puzzles=8", "task.test_puzzles=4"])
    assert row_names(trm.build_task(sudoku.task).dataset("train")) == ["<blank>"]


def test_a_checkpoint_knows_whose_rows_it_has(tmp_path):
    trainer = Trainer(experiment(run_dir="run", train__max_steps=2))
    folder = trainer.fit().checkpoint
    assert read_row_names(folder) == NAMES
    state = json.loads((folder / "state.json").read_text())
    assert ROW_NAMES in state["sha256"]
    resumed = Trainer.resume("run", ["train.max_steps=4"]).fit().checkpoint
    assert read_row_names(resumed) == NAMES


# Weights -----------------------------------------------------------------------------------------


def test_everything_is_taken_where_everything_fits():
    one, two = random_model(1), random_model(2)
    report = transfer_weights(two, Weights(arrays_of(one), NAMES), NAMES)
    assert {each.state for each in report.transfers} == {"taken"}
    assert report.names("taken") == list(arrays_of(two))
    for name, array in arrays_of(one).items():
        assert same(array, arrays_of(two)[name]), name
    assert report.summary() == f"the checkpoint: {len(report.transfers)} taken"


@pytest.mark.parametrize(
    "rows, have, want, count, expected",
    [
        ("auto", NAMES, NAMES[::-1], 9, "9 rows by name"),
        ("names", NAMES, [*NAMES[:5], "x", "y"], 7, "5 rows by name, 2 new: mean, 4 left"),
        ("names", list("abcdefghi"), ["x", "y"], 2, "0 rows by name, 2 new: mean, 9 left"),
        ("auto", None, NAMES, 9, "9 rows by number"),
        ("auto", None, None, 11, "every row the mean of 9"),
        ("auto", NAMES, None, 4, "every row the mean of 9"),
        ("numbers", NAMES, NAMES[::-1], 12, "9 rows by number, 3 new: mean"),
        ("numbers", None, None, 4, "4 rows by number, 5 left"),
        ("mean", NAMES, NAMES, 9, "every row the mean of 9"),
        ("fresh", NAMES, NAMES, 9, "as a new model has it"),
    ],
)
def test_how_rows_are_found(rows, have, want, count, expected):
    arrays = arrays_of(random_model())
    model = random_model(1, dataclasses.replace(SPEC, num_puzzle_identifiers=count))
    before = np.array(model.puzzle_emb.weights)
    report = transfer_weights(model, Weights(arrays, have), want, rows=rows)
    moved = next(each for each in report.transfers if each.name == TABLE)
    assert moved.note == expected
    old, new = np.array(arrays[TABLE]), np.array(model.puzzle_emb.weights)
    assert new.shape == (count, 16)
    states = {"every": "reset", "as": "fresh", "0": "reset"}
    partly = "partly" if "new" in expected else "taken"
    assert moved.state == states.get(expected.split()[0], partly)
    if expected.startswith("as"):
        assert same(new, before)
    elif expected.startswith("every"):
        np.testing.assert_allclose(new, np.tile(old.mean(0), (count, 1)), atol=1e-6)
    elif "number" in expected:
        known = min(9, count)
        assert same(new[:known], old[:known])
        np.testing.assert_allclose(new[known:], np.tile(old.mean(0), (count - known, 1)), atol=1e-6)
    elif have == NAMES:
        for name, row in zip(want, new):
            if name in NAMES:
                assert same(row, old[NAMES.index(name)])


@pytest.mark.parametrize("have, want, says", [(None, NAMES, "checkpoint"), (NAMES, None, "data")])
def test_rows_by_names_that_nobody_knows(have, want, says):
    model, before = random_model(1), arrays_of(random_model(1))
    with pytest.raises(ConfigError, match=f"init.rows: the {says} do.* use numbers, mean or fresh"):
        transfer_weights(model, Weights(arrays_of(random_model()), have), want, rows="names")
    assert all(same(array, arrays_of(model)[name]) for name, array in before.items())


def test_a_pattern_takes_only_what_it_matches():
    source, model = Weights(arrays_of(random_model()), NAMES), random_model(1)
    before = arrays_of(model)
    report = transfer_weights(model, source, NAMES, only=["L_level.*", "q_head.bias"])
    taken = [name for name in before if name.startswith("L_level.")] + ["q_head.bias"]
    assert sorted(report.names("taken")) == sorted(taken)
    for name, array in arrays_of(model).items():
        assert same(array, (source.arrays if name in taken else before)[name]), name
    with pytest.raises(ConfigError, match="init.only: 'M_level.*' matches no weight .*L_level"):
        transfer_weights(model, source, NAMES, only=["M_level.*"])


def test_a_model_of_other_dimensions_takes_what_fits():
    """A table of tokens, an answer's head and layers over other positions stay new."""
    spec = trm.TaskSpec(vocab_size=9, seq_len=7)
    model = random_model(1, spec)
    before = arrays_of(model)
    report = transfer_weights(model, Weights(arrays_of(random_model())))
    assert report.names("reset") == ["puzzle_emb.weights"]
    fresh = report.names("fresh")
    assert {"embed_tokens.embedding_weight", "lm_head.weight"} <= set(fresh)
    assert any("mlp_t" in name for name in fresh)
    assert "L_level.layers.0.mlp.gate_up_proj.weight" in report.names("taken")
    notes = {each.name: each.note for each in report.transfers}
    assert notes["lm_head.weight"] == "(6, 16) in the checkpoint"
    assert all(same(arrays_of(model)[name], before[name]) for name in fresh)


def test_another_kind_of_model_takes_what_it_shares():
    source = Weights(arrays_of(random_model(L_layers=2)))
    settings = {name: value for name, value in vars(experiment().model).items() if name != "name"}
    model = trm.build_model(trm.TRMSingleZConfig(**settings), SPEC)
    report = transfer_weights(model, source)
    assert "L_level.layers.0.mlp.down_proj.weight" in report.names("taken")
    left = [name for name in report.names("left") if not name.startswith("L_level.layers.1.")]
    assert set(left) <= {"H_init", "L_init"}
    shapes = {each.name: each.shape for each in report.transfers if each.state == "left"}
    assert shapes["L_level.layers.1.mlp.gate_up_proj.weight"] == (96, 16)


def test_nothing_that_fits_is_an_error():
    with pytest.raises(ConfigError, match="init.run: nothing in the checkpoint fits the model"):
        transfer_weights(random_model(), Weights({"other": mx.ones(3)}))


@pytest.mark.parametrize("count", [8, 10, 100_000])
def test_names_that_are_not_as_many_as_rows(tmp_path, count):
    """Rows beyond the table's end would be whatever the memory holds."""
    names = [f"puzzle {number}" for number in range(count)]
    with pytest.raises(CheckpointError, match=f"{ROW_NAMES}: {count:,} names .* table of 9; use"):
        read_weights(saved(tmp_path, names))
    source, model = arrays_of(random_model()), random_model(1)
    before = arrays_of(model)
    for have, want, side in ((names, NAMES, "checkpoint"), (NAMES, names, "model")):
        with pytest.raises(ValueError, match=f"{count} names for the 9 rows of the {side}'s"):
            transfer_weights(model, Weights(source, have), want)
    assert all(same(array, arrays_of(model)[name]) for name, array in before.items())


@pytest.mark.parametrize(
    "found", [[0, 2], [-2, 0], [2**32, 0], [[0, 1]], [0.0, 1.0]], ids=["end", "-2", "32", "2d", "f"]
)
def test_rows_that_a_table_does_not_have(found):
    with pytest.raises(ValueError, match="rows must be in -1..1|is \\(N,\\) integers"):
        take_rows(mx.ones((2, 3)), np.array(found))
    with pytest.raises(ValueError, match="two dimensions"):
        take_rows(mx.ones(3), np.array([0]))


@pytest.mark.parametrize(
    "table",
    [mx.ones(()), mx.ones(9), mx.ones((0, 16)), mx.ones((9, 16, 1)), mx.ones((9, 16), mx.int32)],
    ids=lambda table: f"{table.shape} {table.dtype}",
)
def test_a_puzzle_table_that_is_none(tmp_path, table):
    model = random_model()
    model.puzzle_emb.weights = table
    try:
        run = saved(tmp_path, model=model)
    except ValueError as error:  # MLX 0.29 writes no empty array
        pytest.skip(str(error))
    with pytest.raises(CheckpointError, match=r"model.safetensors: puzzle_emb.weights is \(") as no:
        read_weights(run)
    assert "\n" not in str(no.value)
    if table.ndim != 2:
        with pytest.raises(ValueError, match="two dimensions"):
            transfer_weights(random_model(1), Weights({TABLE: table}))


@pytest.mark.parametrize(
    "ours, theirs, says",
    [
        (16, 8, "rows have 8 numbers in the checkpoint and 16 in the model"),
        (16, 0, "the checkpoint has no puzzle table"),
        (0, 16, "the model has no puzzle table"),
    ],
)
def test_rows_by_names_of_tables_that_do_not_match(ours, theirs, says):
    one, two = ({"puzzle_emb_ndim": n, "puzzle_emb_len": int(n > 0)} for n in (theirs, ours))
    source, model = Weights(arrays_of(random_model(**one)), NAMES), random_model(1, **two)
    with pytest.raises(ConfigError, match=f"init.rows: {says}"):
        transfer_weights(model, source, NAMES, rows="names")
    transfer_weights(model, source, NAMES, only=["L_level.*"], rows="names")
    transfer_weights(model, source, NAMES)


# Training from weights ---------------------------------------------------------------------------


def test_training_begins_with_the_average_of_a_run():
    Trainer(experiment(run_dir="first", train__max_steps=8)).fit()
    source = read_weights("first")
    raw = read_weights("first", "raw")
    assert not same(source.arrays["lm_head.weight"], raw.arrays["lm_head.weight"])
    trainer = Trainer(experiment(init__run="first", seed=3))
    assert trainer.run.transfer.summary().endswith(f"{len(source.arrays)} taken")
    ours = flat(trainer)
    for name, array in source.arrays.items():
        assert same(array, ours[name]), name
        assert f"ema.{name}" not in ours or same(array, ours[f"ema.{name}"]), name
    assert trainer.step == 0


def test_only_the_table_is_fine_tuned_with_frozen_weights():
    Trainer(experiment(run_dir="first", train__max_steps=8)).fit()
    before = read_weights("first").arrays
    config = experiment(init__run="first", train__freeze="weights", run_dir="second")
    config.train.max_steps = 6
    Trainer(config).fit()
    for weights in ("raw", "ema"):
        after = read_weights("second", weights).arrays
        changed = [name for name in after if not same(before[name], after[name])]
        assert changed == ["puzzle_emb.weights"], weights


@pytest.mark.parametrize("freeze", ["weights", "puzzle_emb"])
@pytest.mark.parametrize("way", ["micro-batches", "compiled"])
def test_what_is_frozen_stays_whichever_way_a_step_is_taken(freeze, way):
    more = (
        {"train__micro_batch_size": 4} if way == "micro-batches" else {"train__compile": "always"}
    )
    trainer = Trainer(experiment(train__freeze=freeze, train__lr_warmup_steps=0, **more))
    before = flat(trainer)
    for batch in batches(trainer, 2):
        trainer.train_step(batch)
    changed = {name for name, array in flat(trainer).items() if not same(array, before[name])}
    trained = set(before) - {"H_init", "L_init", "puzzle_emb.weights"}
    assert changed == ({"puzzle_emb.weights"} if freeze == "weights" else trained)


def test_a_run_that_began_with_weights_is_resumed_without_them():
    """To the bit, although the first run is gone."""
    Trainer(experiment(run_dir="first", train__max_steps=8)).fit()
    config = {"init__run": "first", "train__max_steps": 8}
    Trainer(experiment(run_dir="whole", **config)).fit()
    trainer = Trainer(experiment(run_dir="cut", **config, checkpoint__every=2))
    trainer.fit(on_tick=lambda step: trainer.stop() if step == 4 else None)
    shutil.rmtree("first")
    resumed = Trainer.resume("cut")
    assert resumed.run.transfer is None and resumed.step == 4
    resumed.fit()
    one, two = (read_weights(run, "raw").arrays for run in ("whole", "cut"))
    assert all(same(array, two[name]) for name, array in one.items())


def test_puzzles_of_the_same_name_keep_their_rows_in_new_data(tmp_path):
    run = saved(tmp_path)
    data = reordered(tmp_path / "more", [7, 2, 5, 0])
    trainer = Trainer(experiment(task__data_dir=str(data), init__run=str(run)))
    old = np.array(read_weights(run).arrays[TABLE])
    assert same(trainer.model.puzzle_emb.weights, old[[0, 8, 3, 6, 1]])
    grown = [str(tmp_path / "own"), str(data)]
    config = experiment(init__run=str(run), init__rows="numbers", init__new_rows="zero")
    config.task.data_dir = grown
    table = np.array(Trainer(config).model.puzzle_emb.weights)
    assert same(table[:9], old) and not table[9:].any() and len(table) == 13


# Commands ----------------------------------------------------------------------------------------


def lm_loss(capsys, words, code=0):
    """Evaluate; give the loss, and what was said beside it."""
    assert evaluate([*map(str, words), "--json", "m.json"]) == code
    with open("m.json", encoding="utf-8") as file:
        return json.load(file)["all"]["lm_loss"], capsys.readouterr().err


def test_evaluation_follows_the_names_to_other_data(tmp_path, capsys):
    run = saved(tmp_path)
    own, said = lm_loss(capsys, [run])
    assert said == ""
    other = reordered(tmp_path / "other", [4, 6, 0, 1, 2, 3, 5, 7])
    followed, said = lm_loss(capsys, [run, f"task.data_dir={other}"])
    assert followed == pytest.approx(own, rel=1e-5) and "9 rows by name" in said
    blind, said = lm_loss(capsys, [saved(tmp_path, None), f"task.data_dir={other}"])
    assert "the checkpoint does not say whose they are" in said
    assert abs(blind - own) > 1e-3


def test_unknown_puzzles_get_the_mean_row_or_zeros(tmp_path, capsys):
    run = saved(tmp_path, [*NAMES[:6], "x", "y", "z"])
    losses = []
    for new_rows in ("mean", "zero"):
        loss, said = lm_loss(capsys, [run, "--new-rows", new_rows])
        assert f"6 rows by name, 3 new: {new_rows}, 3 left" in said
        losses.append(loss)
    assert losses[0] != losses[1]


def test_data_that_were_rebuilt_in_another_order(tmp_path, capsys):
    """No setting has changed, the folder's content has."""
    run = saved(tmp_path)
    own, _ = lm_loss(capsys, [run])
    reordered(tmp_path / "own", [1, 0, 3, 2, 5, 4, 7, 6])
    again, said = lm_loss(capsys, [run])
    assert again == pytest.approx(own, rel=1e-5) and "9 rows by name" in said


SHORT = [
    *("--config", "sudoku_tiny.yaml", "task.train_puzzles=64", "task.test_puzzles=8"),
    *("train.batch_size=8", "train.max_steps=1", "eval.interval=8", "-q"),
]


@pytest.fixture(name="sudoku_run")
def made_sudoku_run(tmp_path, capsys):
    assert train([*SHORT, "run_dir=first"]) == 0
    capsys.readouterr()
    return tmp_path / "first"


def test_a_converted_checkpoint_gives_first_weights(sudoku_run, capsys):
    """It knows no names, and has no average."""
    arrays = read_weights(sudoku_run).arrays
    upstream = {f"_orig_mod.model.inner.{name}": array for name, array in arrays.items()}
    mx.save_safetensors("up.safetensors", upstream)
    words = ["--config", "sudoku_tiny.yaml", "--output", "converted", "-q"]
    assert convert(["up.safetensors", *words]) == 0
    config = trm.load_config("sudoku_tiny.yaml", [word for word in SHORT if "=" in word])
    config.init.run = "converted"
    trainer = Trainer(config)
    assert {each.state for each in trainer.run.transfer.transfers} == {"taken"}
    assert all(same(arrays[name], array) for name, array in arrays_of(trainer.model).items())
    capsys.readouterr()


def test_settings_beside_the_option(sudoku_run, capsys):
    assert train([*SHORT, "init.rows=mean", "--init-from", str(sudoku_run)]) == 0
    config = trm.load_config("runs/sudoku_tiny/config.yaml")
    assert (config.init.run, config.init.rows) == (str(sudoku_run), "mean")
    assert train([*SHORT, "--init-from", " "]) == 2
    assert "init.run: is empty" in capsys.readouterr().err


def test_train_prints_what_was_taken(sudoku_run, capsys):
    words = [word for word in SHORT if word != "-q"]
    assert train([*words, "--init-from", str(sudoku_run), "--init-only", "L_level.*"]) == 0
    out = capsys.readouterr().out
    assert f"First weights from {sudoku_run}/step_1: 8 taken" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["lm_head.weight", "(6,", "32)", "fresh", "not", "asked", "for"] in lines
    taken = [line for line in lines if line[-1:] == ["taken"] and line[0].startswith("L_level.")]
    assert len(taken) == 8
    config = trm.load_config("runs/sudoku_tiny/config.yaml")
    assert config.init.run == str(sudoku_run) and config.init.only == ["L_level.*"]


@pytest.mark.parametrize(
    "words, says",
    [
        (["--init-from", "none"], "none: no such run or checkpoint folder"),
        (["--init-from", "first", "--init-only", "x*"], "init.only: 'x*' matches no weight"),
        (["--init-only", "x*"], "init.only: is of no use without init.run"),
        (["init.rows=mean"], "init.rows: is of no use without init.run"),
        (["init.run=' '"], "init.run: is empty"),
        (["--init-from", "first", "--resume", "first"], "--init-from: a resumed run has weights"),
        (["--init-from", "first", "init.run=runs/x"], "--init-from: init.run says otherwise"),
        (
            ["--init-from", "first", "--init-only", "x*", "init.only=[y*]"],
            "--init-only: init.only says otherwise",
        ),
        (["--init-from", "first", "init.rows=by_name"], "init.rows: 'by_name' is not one of"),
    ],
)
def test_bad_input(sudoku_run, capsys, words, says):
    before = sorted(path.name for path in sudoku_run.iterdir())
    code = train([*SHORT, *words])
    err = capsys.readouterr().err
    assert code == 2 and says in err and err.count("\n") == 1
    assert sorted(path.name for path in sudoku_run.iterdir()) == before


def test_the_option_and_the_setting_may_say_the_same(sudoku_run):
    words = ["--init-from", str(sudoku_run), f"init.run={sudoku_run}", "--print-config"]
    assert train([*SHORT, *words]) == 0


@pytest.mark.parametrize("what", ["absent", "damaged"])
def test_a_first_run_is_checked_before_data_are_built(tmp_path, monkeypatch, what):
    if what == "damaged":
        (saved(tmp_path) / "step_5" / "model.safetensors").write_bytes(b"?")

    def build(*_args):
        raise AssertionError("data were built")

    monkeypatch.setattr("mlx_trm.training.prepare.build_task", build)
    with pytest.raises(CheckpointError, match="no such run|its SHA-256 differs"):
        Trainer(experiment(init__run="run"))


def test_weights_that_do_not_fit_are_named_even_quietly(sudoku_run, capsys):
    assert train([*SHORT, "--init-from", str(sudoku_run), "model.hidden_size=64"]) == 0
    said = capsys.readouterr().err
    assert "of another shape there, and begin as a new model's: " in said
    assert "lm_head.weight" in said and said.count("\n") == 1


def test_evaluation_names_a_checkpoint_with_too_many_names(tmp_path, capsys):
    assert evaluate([str(saved(tmp_path, [*NAMES, "x"]))]) == 2
    said = capsys.readouterr().err
    assert f"{ROW_NAMES} of the checkpoint: 10 names" in said and said.count("\n") == 1


def test_damaged_names_are_named(tmp_path, capsys):
    run = saved(tmp_path)
    (run / "step_5" / ROW_NAMES).write_bytes(b"?")
    assert evaluate([str(run)]) == 2
    assert f"{ROW_NAMES}: its SHA-256 differs" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_row_names(run / "step_5")
