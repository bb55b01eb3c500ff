"""The Go task: data, symmetries, checks, drawing, scores."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import DataError
from mlx_trm.tasks import Go, GoConfig, ScoredRows, build_task
from mlx_trm.tasks.go.generator import generate_puzzles, play_game, thin_out
from mlx_trm.tasks.go.positions import Position, board_keys
from mlx_trm.tasks.go.rules import rules_of

LADDER = "......./..XX.../.XW..../......./......./......./......."
SETTLED = ".X...O./XX...OO/.X...O./.X...O./.X...O./.X.X.O./.X.XO.O"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))


def go(kind: str = "capture", seed: int = 0, **more: Any) -> Go:
    """A task with these settings."""
    task = build_task(GoConfig("go", kind=kind, **more), seed)
    assert isinstance(task, Go)
    return task


def marked(task: Go, text: str, *cells: int) -> np.ndarray:
    """A capture puzzle with first moves marked."""
    tokens = task.parse(text)
    tokens[list(cells)] = 6
    return tokens


def test_the_spec() -> None:
    """A token for each symbol."""
    assert go().spec == TaskSpec(7, 49) and go("territory", size=9).spec == TaskSpec(6, 81)


@pytest.mark.parametrize("kind", ["capture", "territory"])
@pytest.mark.parametrize("size", [7, 9])
def test_generated_puzzles(kind: str, size: int) -> None:
    """Labels are right; splits share nothing; the same seed gives the same bytes."""
    task = go(kind, size=size, train_puzzles=12, test_puzzles=4)
    sets = {split: task.dataset(split) for split in ("train", "test")}
    keys = []
    for split, count in (("train", 12), ("test", 4)):
        inputs, labels = (np.stack(side) for side in zip(*map(sets[split].example, range(count))))
        assert len(sets[split]) == count
        assert task.check_many(inputs, labels).all()
        assert not task.answers(inputs)[1] and (task.answers(inputs)[0] == labels).all()
        keys += board_keys(inputs, kind, size)
        assert all((task.parse(task.format(row)) == row).all() for row in inputs)
        if kind == "capture":
            assert 0.2 < (labels == 6).any(axis=1).mean() < 0.8
    assert len(set(keys)) == 16
    rng = np.random.default_rng([0, 0])
    again = list(generate_puzzles("train", 12, kind, size, 1, rng))
    assert all((a == sets["train"].example(i)[0]).all() for i, (a, _) in enumerate(again))


def test_a_file_of_the_other_split_is_kept_out(tmp_path: Path) -> None:
    """Puzzles of the test file are not generated for training, whichever way they are turned."""
    rng = np.random.default_rng([0, 0])
    first, _ = next(generate_puzzles("train", 1, "territory", 7, 1, rng))
    task = go("territory")
    path = tmp_path / "test.txt"
    path.write_text(task.format(np.rot90(first.reshape(7, 7)).reshape(-1)) + "\n")
    task = go("territory", test_file=str(path), train_puzzles=5)
    assert len(task.dataset("test")) == 1
    stored = [task.dataset("train").example(i)[0] for i in range(5)]
    assert not any((row == first).all() for row in stored)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**32), st.sampled_from(["capture", "territory"]))
def test_symmetries_keep_labels_true(seed: int, kind: str) -> None:
    """Turns, flips and colours: the label of a copy is the copy of the label, and undone again."""
    rng, task = np.random.default_rng(seed), go(kind)
    inputs, labels = (np.stack(side) for side in zip(*generate_puzzles("test", 2, kind, 7, 1, rng)))
    turned, answered = task.augment(inputs, labels, rng)
    assert (task.answers(turned)[0] == answered).all()
    assert board_keys(turned, kind, 7) == board_keys(inputs, kind, 7)
    symmetry = task.random_symmetry(rng)
    copy = symmetry.apply(inputs[0])
    assert (task.answers(copy[None])[0][0] == symmetry.apply(labels[0])).all()
    assert (symmetry.undo(copy) == inputs[0]).all()


def test_all_sixteen_symmetries_come_up() -> None:
    """Eight turns, each in both colourings."""
    task, rng = go(), np.random.default_rng(0)
    inputs = np.stack([task.parse(LADDER)] * 400)
    assert len(np.unique(task.augment(inputs, inputs, rng)[0], axis=0)) == 16


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32))
def test_thinning_keeps_whose_each_point_is(seed: int) -> None:
    """Stones go, territory and its owner stay; no stone is left without a liberty."""
    rules, rng = rules_of(7), random.Random(seed)
    last = list(play_game(rules, rng, 6))[-1].position()
    thin = thin_out(rules, Position(last.black, last.white), rng)
    assert thin.black | last.black == last.black and thin.white | last.white == last.white
    before, after = (rules.territory(each.black, each.white) for each in (last, thin))
    assert before[0] | last.black == after[0] | thin.black
    assert before[1] | last.white == after[1] | thin.white
    assert not rules.without_liberty(thin.black, thin.white)


def test_any_capturing_move_counts() -> None:
    """One of several is enough; a wrong one beside it, none, or another board are not."""
    task = go()
    text = "......./..XX.../.XW..../.X...../......./....O../......."
    assert task.check(task.parse(LADDER), marked(task, LADDER, 23))
    assert task.check(task.parse(text), marked(task, text, 24))
    assert not task.check(task.parse(LADDER), task.parse(LADDER))
    assert not task.check(task.parse(LADDER), marked(task, LADDER, 17))
    assert not task.check(task.parse(LADDER), marked(task, LADDER, 23, 17))
    assert not task.check(task.parse(LADDER), marked(task, LADDER, 23, 9))
    two = "......./..XX.../.XOW.../.XXO.../...X.../......./......."
    inputs = task.parse(two)
    assert (task.answers(inputs[None])[0][0] == marked(task, two, 18, 25)).all()
    assert all(task.check(inputs, marked(task, two, *moves)) for moves in ([18], [25], [18, 25]))
    broken = task.parse("......./..XX.../.XW..../......./......./.....O./.......")
    assert task.check(broken, broken) and not task.answers(broken[None])[1]
    assert not go(quiet_moves=0).check(task.parse(text), marked(task, text, 24))
    assert go(quiet_moves=0).check(task.parse(text), task.parse(text))


def test_territory_has_to_be_exact() -> None:
    """Neutral points stay empty."""
    task = go("territory")
    inputs = task.parse(SETTLED)
    answer = task.answers(inputs[None])[0][0]
    row = "xX...Oo/XX...OO/xX...Oo/xX...Oo/xX...Oo/xX.X.Oo/xX.XOoO"
    assert task.format(answer) == row
    assert task.check(inputs, answer) and not task.check(inputs, inputs)
    assert task.describe_answer(inputs, answer) == "black 16, white 15, neutral 18"


def test_problems_of_boards() -> None:
    """Rows that no parser has seen are refused too."""
    task = go()
    rows = np.stack([task.parse(LADDER), np.full(49, 1, np.uint8), np.full(49, 4, np.uint8)])
    labels, problems = task.answers(rows)
    assert (labels[0] == marked(task, LADDER, 23)).all()
    assert "no group" in problems[1] and "no liberty" in problems[2] and len(problems) == 2
    assert not task.check(rows[1], rows[1])


def test_drawing() -> None:
    """Stones are bold, answers green; another right answer has nothing wrong."""
    task = go()
    inputs, answer = task.parse(LADDER), marked(task, LADDER, 23)
    assert task.render(inputs).split("\n")[3] == "│. X W . . . . │"
    assert task.render_step(answer, inputs).split("\n")[4] == "│. . 1+. . . . │"
    wrong = marked(task, LADDER, 17)
    assert task.render_step(wrong, wrong, inputs, answer).count("!") == 2
    assert "!" not in task.render_step(inputs, inputs, inputs, answer)
    assert "\033[1mX \033[0m" in task.render(inputs, color=True)
    assert "\033[32m1 \033[0m" in task.render(answer, inputs, color=True)
    board = task.board(answer, inputs, answer, inputs)
    assert board.symbols[2, 2] == "O" and board.symbols[3, 2] == "1" and board.symbols[0, 0] == ""
    assert board.changed.sum() == 1 and not board.wrong.any() and board.given.sum() == 4
    assert len(np.unique(task.image(np.arange(7).repeat(7)).reshape(-1, 3), axis=0)) == 7
    assert "<svg" in board.svg() and task.format(answer) in board.svg()
    assert task.describe_answer(inputs, answer) == "black captures at C4"
    assert task.describe_answer(inputs, inputs) == "black cannot capture the group"
    assert (task.parse(task.render(inputs)) == inputs).all()


def test_scores() -> None:
    """By the rules; shares of puzzles that can be captured and of others are told apart."""
    task = go()
    safe = "......./......./..XW.../...X.../......./......./......."
    inputs = np.stack([task.parse(t) for t in (LADDER, LADDER, safe, safe, safe)])
    labels = task.answers(inputs)[0]
    said = labels.copy()
    said[1], said[2, 0] = inputs[1], 6
    rows = ScoredRows(inputs, labels, said, np.zeros(5, int), np.zeros(5), np.arange(5))
    scorer = task.scorer()
    assert all(np.isnan(list(scorer.result().values())))
    scorer.update(rows)
    wanted = {"right_moves": 0.6, "captured": 0.5, "safe": 2 / 3}
    assert scorer.result() == pytest.approx(wanted)
    other = task.scorer()
    other.merge(scorer.state())
    other.update(rows)
    assert other.result() == pytest.approx(wanted)
    field = go("territory")
    inputs = field.parse(SETTLED)[None]
    rows = rows._replace(inputs=inputs, labels=field.answers(inputs)[0], predictions=inputs)
    scorer = field.scorer()
    scorer.update(rows)
    assert scorer.result() == pytest.approx({"points": 18 / 30})


def test_too_many_puzzles_are_refused(monkeypatch: Any) -> None:
    """In one line, not for ever."""
    monkeypatch.setattr("mlx_trm.tasks.go.generator.play_game", lambda *_: iter(()))
    with pytest.raises(DataError, match="only 0 different 7x7 capture puzzles"):
        go().dataset("test")


def test_several_game_trees_are_several_puzzles() -> None:
    """On a command line as in a file; a board of text is one."""
    tree = "(;SZ[7]AB[cb][db][bc]AW[cc]TR[cc])"
    assert go().expand_puzzle(f"Two: {tree}\nand {tree}") == [tree, tree]
    assert go().expand_puzzle(LADDER) == [LADDER]
