"""What a user can do wrong with ARC's files and data sets: one line that helps, nothing damaged."""

import io
import json
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Mapping

import pytest
from bad_input import Case, check, cut, edit_json, remove, rewrite, set_up, snapshot

from mlx_trm.__main__ import main

Tasks = Dict[str, Any]

LINE = "data build --config arc_tiny.yaml task.input_file_prefix=raw/p task.num_aug=2 --output made"
BUILT = "task.data_dir=arcset train.batch_size=2 train.max_steps=1"


def grid(rows: int = 2, columns: int = 2, color: int = 1) -> Any:
    """A grid of one colour."""
    return [[color] * columns for _ in range(rows)]


def task(**changes: Any) -> Any:
    """A task with two demonstrations and a test pair."""
    pair = {"input": grid(), "output": grid(3, 1, 4)}
    return {"train": [pair, pair], "test": [{"input": grid(1, 2)}], **changes}


def files(
    challenges: Any, solutions: Any = None, more: Any = None
) -> Mapping[str, "str | bytes | None"]:
    """Kaggle's files of two subsets; ``challenges`` are those of evaluation."""
    if solutions is None and isinstance(challenges, dict):
        solutions = {name: [grid()] for name in challenges}

    def text(content: Any) -> "str | bytes":
        return content if isinstance(content, (str, bytes)) else json.dumps(content)

    return {
        "raw/p_training_challenges.json": json.dumps({"t0": task()}),
        "raw/p_training_solutions.json": json.dumps({"t0": [grid()]}),
        "raw/p_evaluation_challenges.json": text(challenges),
        "raw/p_evaluation_solutions.json": text(solutions if solutions is not None else {}),
        **(more or {}),
    }


def with_grid(bad: Any, says: str, side: str = "input") -> Case:
    """A demonstration with this grid."""
    pair = {"input": grid(), "output": grid(), side: bad}
    return Case(LINE, f"p_evaluation_challenges.json: task e1: train pair 2: {side}|{says}",
                files({"e1": task(train=[{"input": grid(), "output": grid()}, pair])}))  # fmt: skip


def with_set(says: str, prepare: Callable[[], None], more: str = "") -> Case:
    """A built data set, changed."""
    return Case(f"train --config arc_tiny.yaml {BUILT} {more}", says, prepare=prepare)


def cut_short(name: str) -> Callable[[], None]:
    """Take the last third of a file away."""
    return rewrite(name, cut)


CASES: Dict[str, Case] = {
    "grid/ragged": with_grid([[1, 2], [3]], "row 2 has 1 cells, row 1 has 2"),
    "grid/colour": with_grid([[1, 10]], "row 1 has 10, which is no colour 0 to 9"),
    "grid/negative": with_grid([[-1]], "row 1 has -1, which is no colour 0 to 9", "output"),
    "grid/fraction": with_grid([[1.5]], "row 1 has 1.5"),
    "grid/text": with_grid([["1"]], "row 1 has '1'"),
    "grid/yes": with_grid([[True]], "row 1 has True"),
    "grid/empty": with_grid([], "a grid is a list of rows"),
    "grid/no_cells": with_grid([[], []], "is 2x0"),
    "grid/flat": with_grid([1, 2], "a grid is a list of rows"),
    "grid/31": Case(LINE + " task.max_grid_size=30", "is 31x31, allowed are 1x1 to 30x30",
                    files({"e1": task(train=[{"input": grid(31, 31), "output": grid()}])})),
    "grid/canvas": Case(LINE + " task.max_grid_size=3", "is 4x1, allowed are 1x1 to 3x3",
                        files({"e1": task(train=[{"input": grid(4, 1), "output": grid()}])})),
    "task/no_train": Case(LINE, "task e1: 'train' must be a list", files({"e1": {"test": []}})),
    "task/train_empty": Case(LINE, "task e1: 'train' is empty", files({"e1": task(train=[])})),
    "task/test_empty": Case(LINE, "task e1: 'test' is empty", files({"e1": task(test=[])})),
    "task/no_output": Case(LINE, "train pair 1: has no 'output'",
                           files({"e1": task(train=[{"input": grid()}])})),
    "task/list": Case(LINE, "task e1: 'train' must be a list", files({"e1": []})),
    "file/list": Case(LINE, "p_evaluation_challenges.json: is not a JSON object", files([])),
    "file/cut": Case(LINE, "p_evaluation_challenges.json: is not JSON", files('{"e1": {"train"')),
    "file/bytes": Case(LINE, "p_evaluation_challenges.json: is not JSON", files(b"\xff\xfe")),
    "file/nothing": Case(LINE, "p_evaluation_challenges.json: holds no tasks", files({})),
    "file/solutions_missing": Case(
        LINE, "p_evaluation_solutions.json: no such file|task.require_solutions=false",
        files({"e1": task()}), remove("raw/p_evaluation_solutions.json")),
    "file/solution_missing": Case(LINE, "solutions.json: task e2: has no entry",
                                  files({"e1": task(), "e2": task()}, {"e1": [grid()]})),
    "file/solutions_many": Case(LINE, "task e1: has 2 grids, the task has 1 test inputs",
                                files({"e1": task()}, {"e1": [grid(), grid()]})),
    "task/name": Case(LINE, "task a|||b: a task's name is text without '|||'",
                      files({"a|||b": task()})),
    "task/surrogate": Case(LINE, "a task's name is text without", files({"\ud800": task()})),
    "file/solution_ragged": Case(LINE, "solutions.json: task e1: test pair 1: output: row 2 has 1",
                                 files({"e1": task()}, {"e1": [[[1, 2], [1]]]})),
    "file/subset": Case(LINE + " task.subsets=[training,evaluation,x]",
                        "'x': there is neither raw/p_x_challenges.json nor a folder raw/p_x",
                        files({"e1": task()})),
    "file/prefix": Case(LINE.replace("raw/p", "none/p"), "there is neither none/p_training_chall"),
    "file/empty_folder": Case(
        "data build --config arc_tiny.yaml task.input_file_prefix=raw --output made",
        "raw/training: holds no JSON files", {"raw": None, "raw/training": None}),
    "file/twice": Case(
        "data build --config arc_tiny.yaml task.input_file_prefix=raw --output made",
        "there are two tasks of this name",
        {"raw": None, "raw/training": None, "raw/training/a": None, "raw/training/b": None,
         "raw/training/a/x.json": json.dumps(task(test=[{"input": grid(), "output": grid()}])),
         "raw/training/b/x.json": json.dumps(task(test=[{"input": grid(), "output": grid()}])),
         "raw/evaluation": None, "raw/evaluation/y.json": json.dumps(task())}),
    "file/nothing_fetched": Case("data build --config arc1.yaml", "data fetch arc1 arc2 concept"),
    "set/cut_short": with_set("all__labels.npy: is damaged",
                              cut_short("arcset/train/all__labels.npy")),
    "set/indices_cut": with_set("all__group_indices.npy", cut_short(
        "arcset/test/all__group_indices.npy")),
    "set/no_test": with_set("the dataset has no split 'test'", remove("arcset/test")),
    "set/other_version": with_set("was built by another version of mlx_trm (format 7",
                                  edit_json("arcset/build.json", format=7)),
    "set/unequal": with_set("num_puzzle_identifiers is 73, in test it is 4000",
                            edit_json("arcset/test/dataset.json", num_puzzle_identifiers=4000)),
    "set/other_size": with_set("seq_len is 25, this task needs 400", lambda: None,
                               "task.max_grid_size=20"),
    "set/no_tests": with_set("test_puzzles.json: no such file|build the dataset again",
                             remove("arcset/test_puzzles.json")),
    "set/tests_damaged": with_set("test_puzzles.json: is damaged",
                                  cut_short("arcset/test_puzzles.json")),
    "set/twice": with_set("data_dir: names a folder twice", lambda: None,
                          "task.data_dir=[arcset,arcset]"),
    "set/mixed": with_set("vocab_size is 6, in arcset", lambda: None,
                          "task.data_dir=[arcset,built]"),
}  # fmt: skip


@pytest.fixture(name="made", scope="module")
def make_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ARC set and one of another task."""
    folder: Path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_TRM_CACHE", str(folder / "cache"))
        arc = "data build --config arc_tiny.yaml task.num_aug=1 -q --output"
        assert main([*arc.split(), str(folder / "arcset")]) == 0
        other = "data build --config sudoku_tiny.yaml task.train_puzzles=9 task.test_puzzles=9 -q"
        assert main([*other.split(), "--output", str(folder / "built")]) == 0
    return folder


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str,
    made: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code 2, one telling line, and every file as it was before."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for folder in ("arcset", "built"):
        shutil.copytree(made / folder, folder)
    case = CASES[name]
    words = set_up(case)
    before = snapshot(Path("."))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code = main(words)
    check(case, code, *capfd.readouterr())
    assert snapshot(Path(".")) == before


def test_there_are_enough_cases() -> None:
    """As many as were asked for, besides those of the other tasks."""
    assert len(CASES) >= 35
