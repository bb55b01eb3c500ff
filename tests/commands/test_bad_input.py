"""What a user can do wrong, at the command line: one line that helps, code 2, nothing damaged."""

import io
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Callable, Dict, Optional

import mlx.core as mx
import pytest
from bad_input import Case, check, cut, edit_json, remove, rewrite, set_up, snapshot
from child_processes import run_python
from paths import ROOT

from mlx_trm.__main__ import main
from mlx_trm.config.sections import TaskSpec
from mlx_trm.system.report import gpu_available

RECORDING = ROOT / "tests" / "reference" / "cuda" / "trm_att_rope_bf16.safetensors"
TINY = "--config sudoku_tiny.yaml task.train_puzzles=64 task.test_puzzles=16 train.batch_size=8"
SHORT = f"{TINY} train.max_steps=1"
NINE = "--config sudoku.yaml train.batch_size=2 train.max_steps=1"
HARD = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
FOUR, FOUR_SOLVED = "1.....2..3.....4", "1243342143122134"
HEADER = "source,question,answer,rating\n"
ROW = f"x,{HARD},{SOLVED},5\n"
MAZE = "--config maze.yaml task.size=4 train.batch_size=2 train.max_steps=1"
CELLS, MARKED = "S #    # #     G", "S # o  #o#  oooG"
YAML = "task: {name: sudoku, size: 4}\nmodel: {name: trm}\n"


# Preparations: they run in the working folder, which holds a run in `run` and data in `built`.


def other_shape(content: bytes) -> bytes:
    """Safetensors with a weight of another shape."""
    Path("x.safetensors").write_bytes(content)
    arrays = dict(mx.load("x.safetensors"))
    arrays["lm_head.weight"] = mx.zeros((3, 5))
    mx.save_safetensors("x.safetensors", arrays)
    changed = Path("x.safetensors").read_bytes()
    os.unlink("x.safetensors")
    return changed


def fetched(name: str, content: Optional[str]) -> Callable[[], None]:
    """Something in the cache ``cache``, where fetched sets go; None makes a folder."""

    def prepare() -> None:
        path = Path("cache", "fetched", name)
        path.parent.mkdir(parents=True)
        if content is None:
            path.mkdir()
        else:
            path.write_text(content)

    return prepare


def recording(metadata: Dict[str, str]) -> Callable[[], None]:
    """A folder ``recorded`` with a small file that has this metadata."""

    def prepare() -> None:
        os.mkdir("recorded")
        mx.save_safetensors("recorded/a.safetensors", {"a": mx.zeros((1,))}, metadata)

    return prepare


def train_csv(text: "str | bytes", says: str, more: str = "") -> Case:
    """A 9x9 training file with this content."""
    return Case(f"train {NINE} task.train_file=a.csv {more}", says, {"a.csv": text})


def maze_csv(rows: str, says: str, header: str = HEADER) -> Case:
    """A CSV of 4x4 mazes with these lines."""
    return Case(f"data build {MAZE} task.train_file=a.csv", says, {"a.csv": header + rows})


def maze_text(text: str, says: str) -> Case:
    """A text file of 4x4 mazes."""
    return Case(f"data build {MAZE} task.test_file=a.txt", says, {"a.txt": text})


def with_data(says: str, prepare: Callable[[], None], more: str = "") -> Case:
    """The built folder, changed, as ``data_dir``."""
    line = "train --config sudoku_tiny.yaml train.batch_size=8 train.max_steps=1"
    return Case(f"{line} task.data_dir=built {more}", says, prepare=prepare)


def config(text: "str | bytes", says: str, problems: int = 0) -> Case:
    """A configuration file with this content."""
    return Case("train --config a.yaml", says, {"a.yaml": text}, problems=problems)


def evaluated(says: str, prepare: Callable[[], None]) -> Case:
    """The run, changed."""
    return Case("evaluate run -q", says, prepare=prepare)


STEP = "run/step_1/"
NOWHERE = {name: "http://127.0.0.1:9" for name in ("HF_ENDPOINT", "https_proxy")}
OWN_CACHE = {"MLX_TRM_CACHE": "cache", **NOWHERE}

CASES: Dict[str, Case] = {
    # Configurations -----------------------------------------------------------------------------
    "config/missing": Case("train", "--config FILE is missing"),
    "config/no-file": Case("train --config nope.yaml", "nope.yaml: there is no such file"),
    "config/misspelt": Case("train --config sudoku_tini.yaml", "did you mean 'sudoku_tiny.yaml'"),
    "config/folder": Case("train --config sub", "is a folder", {"sub": None}),
    "config/no-option": Case("train sudoku.yaml", "did you mean --config sudoku.yaml"),
    "config/not-yaml": config("task: [1\nmodel: {", "a.yaml: line"),
    "config/tab": config("task:\n\tname: sudoku\n", "line 2"),
    "config/not-utf8": config(b"task: \xff\xfe\n", "is not UTF-8"),
    "config/nul": config("task: {name: 'a\0b'}", "not allowed"),
    "config/duplicate": config(YAML + "seed: 1\nseed: 2\n", "seed|a.yaml: "),
    "config/empty": config("", "is empty"),
    "config/list": config("- 1\n- 2\n", "expected sections"),
    "config/scalar": config("hello", "expected sections"),
    "config/alias": config(YAML + "seed: &a 1\nrun_dir: *a\n", "alias"),
    "config/no-names": config("seed: 1\n", "task.name|model.name", problems=2),
    "config/section-is-list": config(YAML + "train: [1]\n", "expected a section"),
    "config/several": config(
        YAML + "train: {batchsize: 1, loss: stable}\neval: {interval: x}\n",
        "train.batchsize|'train.batch_size'|'stablemax'|eval.interval",
        problems=3,
    ),
    "key/unknown": Case(f"train {SHORT} train.batchsize=8", "did you mean 'train.batch_size'"),
    "key/unknown-section": Case(f"train {SHORT} optim.lr=1", "unknown key 'optim.lr'"),
    "key/of-reference": Case(f"train {SHORT} global_batch_size=8", "'train.batch_size'"),
    "key/section-alone": Case(f"train {SHORT} train=1", "is a section"),
    "key/no-equals": Case(f"train {SHORT} --set train.lr", "'=' is missing"),
    "key/no-name": Case(f"train {SHORT} =3", "the name before '=' is missing"),
    "key/no-value": Case(f"train {SHORT} train.lr=", "train.lr: expected a number, not null"),
    "value/type": Case(f"train {SHORT} train.lr=fast", "train.lr: expected a number"),
    "value/bool-as-int": Case(f"train {SHORT} train.batch_size=true", "expected a whole number"),
    "value/text-as-bool": Case(f"train {SHORT} train.ema=yes", "write true"),
    "value/batch-0": Case(f"train {TINY} train.batch_size=0", "train.batch_size: must be at least"),
    "value/negative": Case(f"train {SHORT} train.lr=-1", "train.lr: must be at least 0"),
    "value/infinite": Case(f"train {SHORT} train.lr=.inf", "must be a finite number"),
    "value/nan": Case(f"train {SHORT} train.weight_decay=.nan", "must be a finite number"),
    "value/1e999": Case(f"train {SHORT} train.lr=1e999", "must be a finite number"),
    "value/too-large": Case(f"train {SHORT} seed=99999999999999999999", "the number is too large"),
    "value/choice": Case(f"train {SHORT} train.loss=stable", "did you mean 'stablemax'"),
    "value/heads": Case(
        f"train {SHORT} model.mlp_t=false model.num_heads=3", "num_heads|hidden_size"
    ),
    "value/huge-model": Case(f"train {SHORT} model.hidden_size=1000000000", "too large"),
    "value/large-model": Case(f"train {SHORT} model.hidden_size=28000", "GiB"),
    "value/huge-expansion": Case(f"train {SHORT} model.expansion=1e300", "model"),
    "value/huge-puzzle-len": Case(f"train {SHORT} model.puzzle_emb_len=100000000000", "too large"),
    "value/task": Case(f"train {SHORT} task.name=sudoko", "did you mean 'sudoku'"),
    "value/model": Case(f"train {SHORT} model.name=trn", "did you mean 'trm'"),
    "value/interval": Case(f"train {SHORT} eval.interval=3", "does not divide train.epochs"),
    "value/eval-0": Case(f"train {SHORT} eval.max_examples=0", "eval.max_examples: must be at"),
    "value/every": Case(f"train {SHORT} checkpoint.every=soon", "checkpoint.every"),
    "value/nul": Case(f'train {SHORT} run_dir="a\\0b"', "run_dir: has a character"),
    "value/other-encoding": Case(f"train {SHORT} run_dir=caf\udcff", "run_dir: has a character"),
    "value/symmetries": Case(f"train {SHORT} task.symmetries=[turn]", "task.symmetries"),
    "value/givens": Case(f"train {SHORT} task.min_givens=9 task.max_givens=5", "min_givens"),
    "value/batch-memory": Case(f"train {TINY} train.batch_size=100000000", "GiB|train.batch_size="),
    "plugin/unknown": Case(f"train {SHORT} plugins=[no_such_module]", "no module 'no_such_module'"),
    "plugin/no-file": Case(f"train {SHORT} plugins=[nope.py]", "nope.py: No such file"),
    "plugin/raises": Case(
        f"train {SHORT} plugins=[p.py]",
        "p.py: ValueError: first",
        {"p.py": "raise ValueError('first\\nsecond')\n"},
    ),
    "plugin/syntax": Case(f"train {SHORT} plugins=[q.py]", "SyntaxError", {"q.py": "def (:\n"}),
    # Data files ---------------------------------------------------------------------------------
    "file/missing": Case(f"train {NINE} task.train_file=no.csv", "no.csv: cannot be read"),
    "file/missing-test": Case(f"train {NINE} task.test_file=no.csv", "no.csv: cannot be read"),
    "file/folder": Case(f"train {NINE} task.train_file=sub", "sub: ", {"sub": None}),
    "file/built": Case(f"train {NINE} task.train_file=built", "built: "),
    "file/empty": train_csv("", "a.csv:1: the columns must be"),
    "file/header-only": train_csv(HEADER, "a.csv: holds no puzzles"),
    "file/columns": train_csv(
        "puzzle,key\n1,2\n", "the columns must be one question (puzzle, quizzes)"
    ),
    "file/ragged": train_csv(HEADER + ROW + "x,y\n", "a.csv:3: 2 columns, the header has 4"),
    "file/80-cells": train_csv(HEADER + f"x,{HARD[1:]},{SOLVED},5\n", "has 80 cells"),
    "file/letter": train_csv(HEADER + f"x,{HARD[:-1]}k,{SOLVED},5\n", "a.csv:2: |'k' in row 9"),
    "file/givens": train_csv(HEADER + f"x,5{HARD[:1]}{HARD[2:]},{SOLVED},5\n", "contradictory"),
    "file/answer-differs": train_csv(HEADER + f"x,{HARD},6{SOLVED[1:]},5\n", "where 5 is given"),
    "file/answer-wrong": train_csv(
        HEADER + f"x,{HARD},{SOLVED[:2]}6{SOLVED[3:]},5\n", "the answer is wrong: 6 stands twice"
    ),
    "file/answer-blank": train_csv(HEADER + f"x,{HARD},{HARD},5\n", "has a blank in row 1"),
    "file/rating": train_csv(HEADER + f"x,{HARD},{SOLVED},hard\n", "rating must be a whole number"),
    "file/quotes": train_csv(HEADER + f'x,"{HARD},{SOLVED},5\n', "a.csv:2: "),
    "file/binary": train_csv(bytes(range(256)) * 20, "a.csv:1: "),
    "file/nul": train_csv("source,\0\n", "a.csv:1: "),
    "file/header-quote": train_csv('"' + "x" * 200000 + "\n", "a.csv:1: "),
    "file/utf16": train_csv((HEADER + ROW).encode("utf-16"), "a.csv:1: is not UTF-8"),
    "file/size": Case(
        f"train {SHORT} task.train_file=a.csv", "81 cells, 4x4 needs 16", {"a.csv": HEADER + ROW}
    ),
    "file/min-difficulty": train_csv(
        HEADER + ROW, "highest rating is 5; min_difficulty is 9", "task.min_difficulty=9"
    ),
    "file/no-rating": train_csv(
        f"question,answer\n{HARD},{SOLVED}\n", "has no column 'rating'", "task.min_difficulty=9"
    ),
    "file/batch-larger": Case(f"train {TINY} train.batch_size=600", "no batch is ever full"),
    "file/two-solutions": Case(
        f"train {SHORT} task.train_file=a.txt",
        "a.txt:2: the puzzle has more than one solution",
        {"a.txt": f"{FOUR}\n{'.' * 16}\n"},
    ),
    "file/no-solution": Case(
        f"data build {TINY} task.train_file=a.txt",
        "a.txt:1: the puzzle has no solution",
        {"a.txt": "123....4........\n"},
    ),
    "file/hidden": Case(f"train {SHORT} task.data_dir=built task.train_file=a.csv", "ignored"),
    # Mazes --------------------------------------------------------------------------------------
    "maze/missing": Case(f"train {MAZE} task.train_file=no.csv", "no.csv: cannot be read"),
    "maze/folder": Case(f"train {MAZE} task.test_file=sub", "sub: is a folder", {"sub": None}),
    "maze/empty": maze_csv("", "a.csv:1: the columns must be one question", header=""),
    "maze/header-only": maze_csv("", "a.csv: holds no mazes"),
    "maze/columns": maze_csv("1,2\n", "columns must be one question", "maze,path\n"),
    "maze/ragged-row": maze_csv(f"a,{CELLS},{MARKED},6\nb\n", "a.csv:3: 1 columns, the header"),
    "maze/15-cells": maze_csv(f"a,{CELLS[1:]},{MARKED},6\n", "a.csv:2: the question has 15 cells"),
    "maze/other-size": maze_csv(f"a,{'S' * 25},{'S' * 25},6\n", "25 cells|task.size=5"),
    "maze/letter": maze_csv(f"a,{CELLS[:-1]}x,{MARKED},6\n", "has 'x' in row 4 column 4"),
    "maze/answer-no-path": maze_csv(
        f"a,{CELLS},{MARKED[:8]} {MARKED[9:]},6\n", "a.csv:2: the answer is no path: its o do not"
    ),
    "maze/answer-stray": maze_csv(
        f"a,{CELLS},{MARKED[:1]}o{MARKED[2:]},6\n", "lead from S to G in 6 steps|there are 6"
    ),
    "maze/answer-differs": maze_csv(
        f"a,{CELLS},{MARKED[:2]}o{MARKED[3:]},6\n", "the answer has 'o' in row 1 column 3|'#'"
    ),
    "maze/utf16": Case(
        f"data build {MAZE} task.train_file=a.csv",
        "a.csv:1: is not UTF-8",
        {"a.csv": HEADER.encode("utf-16")},
    ),
    "maze/no-goal": maze_text("S...\n....\n....\n....\n", "a.txt:1: the maze has no goal G"),
    "maze/two-starts": maze_text("S..S\n....\n....\n...G\n", "a.txt:1: the maze has 2 times S"),
    "maze/unsolvable": maze_text("S#..\n##..\n....\n...G\n", "a.txt:1: no way leads from S in"),
    "maze/ragged": maze_text("\nS...\n..\n....\n...G\n", "a.txt:2: row 2 of the maze has 2 cells"),
    "maze/rows": maze_text("S...\n...G\n", "a.txt:1: the maze has 2 rows, 4x4 needs 4"),
    "maze/comment": maze_text("# my mazes\n\nS...\n", "a.txt:1: the maze has 10 cells"),
    "maze/nothing": maze_text("\n  \n", "a.txt: holds no mazes"),
    "maze/min-path": Case(
        f"train {MAZE} task.min_path=99", "task.min_path: a 4x4 maze has no shortest path of 99"
    ),
    "maze/too-many": Case(
        f"data build {MAZE} task.size=3 task.train_puzzles=99",
        "different ones found, 49 wanted; ask for",
    ),
    "maze/size": Case(f"train {MAZE} task.size=2", "task.size: must be at least 3"),
    "maze/style": Case(f"train {MAZE} task.style=wall", "did you mean 'walls'"),
    "maze/built": Case(
        f"train {MAZE} task.size=5 task.data_dir=built", "seq_len is 16, this task needs 25"
    ),
    # Built data ---------------------------------------------------------------------------------
    "built/missing": Case("data show --config sudoku_tiny.yaml task.data_dir=no", "no: no such"),
    "built/is-file": Case(
        "data show --config sudoku_tiny.yaml task.data_dir=a", "a: is not a folder", {"a": ""}
    ),
    "built/other-vocabulary": Case(
        f"train {NINE} task.data_dir=built", "vocab_size is 6, this task needs 11"
    ),
    "built/no-test": with_data("has no split 'test'", remove("built/test")),
    "built/no-array": with_data("labels.npy: no such", remove("built/train/all__labels.npy")),
    "built/truncated": with_data("is damaged", rewrite("built/train/all__inputs.npy", cut)),
    "built/empty-array": with_data(
        "is damaged", rewrite("built/train/all__group_indices.npy", lambda _: b"")
    ),
    "built/not-npy": with_data(
        "is damaged", rewrite("built/train/all__inputs.npy", lambda _: b"hello" * 99)
    ),
    "built/not-json": with_data("is not JSON", rewrite("built/train/dataset.json", cut)),
    "built/deep-json": with_data(
        "is not JSON", rewrite("built/train/dataset.json", lambda _: b"[" * 100000)
    ),
    "built/no-key": with_data("seq_len", edit_json("built/train/dataset.json", seq_len=None)),
    "built/pad-id": with_data("pad_id", edit_json("built/train/dataset.json", pad_id=99)),
    "built/count": with_data("total_groups", edit_json("built/train/dataset.json", total_groups=9)),
    "built/token": with_data(
        "token 255 is not in 0..5",
        rewrite("built/test/all__inputs.npy", lambda content: content[:-1] + b"\xff"),
    ),
    # Runs ---------------------------------------------------------------------------------------
    "run/missing": Case("evaluate nope", "nope: no such run"),
    "run/missing-solve": Case(f"solve nope {FOUR}", "nope: no such run"),
    "run/is-file": Case("evaluate a", "a: is a file", {"a": "x"}),
    "run/empty": Case("evaluate sub", "sub: holds no checkpoint", {"sub": None}),
    "run/no-checkpoint": evaluated("run: holds no checkpoint", remove("run/latest", "run/step_1")),
    "run/dangling-link": evaluated("run: holds no checkpoint", remove("run/step_1")),
    "run/state-cut": evaluated("state.json: damaged", rewrite(STEP + "state.json", cut)),
    "run/state-list": evaluated(
        "state.json: damaged", rewrite(STEP + "state.json", lambda _: b"[]")
    ),
    "run/state-deep": evaluated(
        "state.json: damaged", rewrite(STEP + "state.json", lambda _: b"[" * 100000)
    ),
    "run/state-format": evaluated("format 99", edit_json(STEP + "state.json", format=99)),
    "run/state-spec": evaluated(
        "vocab_size must be a whole number from 1 up, not '6'",
        edit_json(STEP + "state.json", own_sha256=None, spec={"vocab_size": "6", "seq_len": 16}),
    ),
    "run/state-other-spec": evaluated(
        "do not fit the model",
        edit_json(
            STEP + "state.json", own_sha256=None, spec=asdict(TaskSpec(vocab_size=9, seq_len=4))
        ),
    ),
    "run/state-half-a-spec": evaluated(
        "num_puzzle_identifiers is missing",
        edit_json(STEP + "state.json", own_sha256=None, spec={"vocab_size": 6, "seq_len": 16}),
    ),
    "run/state-no-spec": evaluated(
        "state.json: damaged or not a checkpoint's",
        edit_json(STEP + "state.json", own_sha256=None, spec=[6, 16]),
    ),
    "run/model-missing": evaluated(
        "model.safetensors: missing", remove(STEP + "model.safetensors")
    ),
    "run/model-cut": evaluated("SHA-256", rewrite(STEP + "model.safetensors", cut)),
    "run/ema-changed": evaluated(
        "ema.safetensors: its SHA-256",
        rewrite(STEP + "ema.safetensors", lambda content: content[:-1] + b"?"),
    ),
    "run/config-changed": evaluated(
        "config.yaml: its SHA-256",
        rewrite(STEP + "config.yaml", lambda content: content + b"\n"),
    ),
    "run/sealed-cut": evaluated(
        "cannot be read as safetensors", rewrite(STEP + "model.safetensors", cut, seal=True)
    ),
    "run/sealed-other-format": evaluated(
        "cannot be read as safetensors",
        rewrite(STEP + "model.safetensors", lambda _: b"PK\x03\x04" * 100, seal=True),
    ),
    "run/sealed-other-shape": evaluated(
        "lm_head.weight is (3, 5)", rewrite(STEP + "model.safetensors", other_shape, seal=True)
    ),
    "run/sealed-config": evaluated(
        "its configuration cannot be used",
        rewrite(STEP + "config.yaml", lambda _: b"task: [", seal=True),
    ),
    "run/model-override": Case("evaluate run model.H_cycles=1", "cannot be overridden"),
    "run/unknown-override": Case("evaluate run eval.batchsize=1", "did you mean 'eval.batch_size'"),
    "run/other-data": Case(
        "evaluate run task.size=6 task.min_givens=30 task.max_givens=34 task.train_puzzles=4",
        "do not fit the model: vocab_size is 8",
    ),
    "run/steps-0": Case("evaluate run --steps 0", "'0' is not a whole number of at least 1"),
    "run/steps-negative": Case("evaluate run --steps -1", "'-1' is not a whole number"),
    "run/steps-text": Case("evaluate run --steps x", "'x' is not a whole number"),
    "run/max-examples": Case("evaluate run --max-examples 0", "'0' is not a whole number"),
    "run/split": Case("evaluate run --split dev", "'dev'"),
    "run/json-folder": Case(
        "evaluate run --json no/a.json", "--json: no/a.json: cannot be written"
    ),
    "run/json-directory": Case("evaluate run --json sub", "it is a folder", {"sub": None}),
    "run/log-file": Case("evaluate run --log-file no/a.log", "--log-file no/a.log"),
    "run/log-directory": Case("evaluate run --log-file sub", "--log-file sub", {"sub": None}),
    "run_dir/holds-run": Case(f"train {SHORT} run_dir=run", "holds a run already"),
    "run_dir/file": Case(f"train {SHORT} run_dir=a", "a is a file; name a folder", {"a": "x"}),
    "run_dir/under-file": Case(f"train {SHORT} run_dir=a/b/c", "a is a file", {"a": "x"}),
    "run_dir/long": Case(f"train {SHORT} run_dir={'n' * 300}", "name too long"),
    "run_dir/empty": Case(f'train {SHORT} run_dir=""', "run_dir: is empty"),
    # Solving ------------------------------------------------------------------------------------
    "solve/empty": Case(["solve", "run", ""], "the puzzle has 0 cells, 4x4 needs 16"),
    "solve/short": Case("solve run 123", "the puzzle has 3 cells"),
    "solve/nine": Case(f"solve run {HARD}", "the puzzle has 81 cells"),
    "solve/letter": Case("solve run 1.....2..3.....x", "'x' in row 4 column 4"),
    "solve/givens": Case("solve run 11....2..3.....4", "contradictory givens: 1 stands twice"),
    "solve/none": Case("solve run 123....4........", "the puzzle has no solution"),
    "solve/two": Case("solve run 1...............", "more than one solution"),
    "solve/no-file": Case("solve run puzzles.txt", "puzzles.txt: no such file"),
    "solve/folder": Case("solve run sub", "sub: is a folder", {"sub": None}),
    "solve/binary": Case("solve run a.bin", "is not UTF-8", {"a.bin": b"\xff\xfe\x00"}),
    "solve/empty-file": Case("solve run a.txt", "a.txt: holds no puzzle", {"a.txt": "# none\n"}),
    "solve/empty-stdin": Case("solve run -", "standard input: holds no puzzle"),
    "solve/stdin": Case("solve run -", "standard input:1: |2: ", stdin="12\n3x\n", problems=2),
    "solve/steps": Case(f"solve run {FOUR} --steps 0", "--steps: '0'"),
    "solve/json": Case(f"solve run {FOUR} --json no/a", "--json: no/a: cannot be written"),
    # Parity -------------------------------------------------------------------------------------
    "parity/missing": Case("parity nope", "nope: no such folder of recordings"),
    "parity/file": Case("parity a", "a: is no folder", {"a": "x"}),
    "parity/empty": Case("parity sub", "sub: holds no recording", {"sub": None}),
    "parity/corrupt": Case(
        "parity sub",
        "a.safetensors: cannot be read as safetensors",
        {"sub/a.safetensors": b"\x10\0\0\0\0\0\0\0{'what': 'nothing'"},
    ),
    "parity/cut": Case(
        "parity sub",
        "it is cut short",
        {"sub/a.safetensors": RECORDING.read_bytes()[:-1000]},
    ),
    "parity/offsets": Case(
        "parity sub",
        "header is malformed",
        {"sub/a.safetensors": b'\x0d\0\0\0\0\0\0\0{"a":{"b":1}}'},
    ),
    "parity/no-metadata": Case("parity recorded", "the metadata", prepare=recording({})),
    "parity/config": Case(
        "parity recorded",
        "the metadata",
        prepare=recording({"model": "trm", "config": "[1]", "loss": "softmax"}),
    ),
    "parity/settings": Case(
        "parity recorded",
        "does not hold what it should",
        prepare=recording(
            {
                "model": "trm",
                "config": '{"forward_dtype": "float32", "halt_max_steps": 4}',
                "loss": "softmax",
            }
        ),
    ),
    "parity/only": Case(
        "parity sub --only nope",
        "holds no recording (*.safetensors) whose name matches 'nope'",
        {"sub/a.safetensors": "x"},
    ),
    "parity/only-empty": Case(
        ["parity", "sub", "--only", ""], "whose name matches ''", {"sub/a.safetensors": "x"}
    ),
    # Data ---------------------------------------------------------------------------------------
    "build/foreign": Case(
        f"data build {TINY} --output mine", "mine: is not empty", {"mine/thesis.txt": "years"}
    ),
    "build/half-foreign": Case(
        f"data build {TINY} --output built",
        "holds files that are not the dataset's",
        {"built/train/thesis.txt": "years"},
    ),
    "build/file": Case(f"data build {TINY} --output a", "a: is not a folder", {"a": "x"}),
    "build/under-file": Case(f"data build {TINY} --output a/b", "cannot be written", {"a": "x"}),
    "build/task": Case(f"data build {TINY} task.name=bridge", "unknown task 'bridge'"),
    "build/bad-file": Case(
        f"data build {NINE} task.train_file=a.csv --output new",
        "a.csv:3: 1 columns",
        {"a.csv": HEADER + ROW + "what\n"},
    ),
    "build/again": Case(f"data build {TINY} task.data_dir=built", "is built already"),
    "show/index": Case(f"data show {TINY} --index 99", "--index 99: the split test has 16"),
    "show/count": Case(f"data show {TINY} --count 0", "'0' is not a whole number"),
    "generate/exists": Case("data generate --output a", "is there already", {"a": "x"}),
    "generate/hard-4x4": Case("data generate --size 4 --hard", "--hard"),
    "generate/under-file": Case(
        "data generate --size 4 --count 1 --output a/b.csv", "cannot be written", {"a": "x"}
    ),
    # Fetching -----------------------------------------------------------------------------------
    "fetch/unknown": Case("data fetch sudoku-xtreme", "did you mean 'sudoku-extreme'|known: "),
    "fetch/unknown-second": Case("data fetch arc1 arc9", "unknown data set 'arc9'"),
    "fetch/unreachable": Case(
        "data fetch arc1 -q",
        "arc-agi_training_challenges.json: cannot be downloaded: |by hand: put it at",
        env={**NOWHERE, "no_proxy": ""},
    ),
    "fetch/unreachable-csv": Case(
        "data fetch maze-30x30-hard-1k -q",
        "train.csv: cannot be downloaded: Connection refused; by hand: put it at",
        env=NOWHERE,
    ),
    "fetch/no-server": Case(
        "data fetch sudoku-extreme -q",
        "train.csv: cannot be downloaded: |by hand: put it at",
        env={"HF_ENDPOINT": "mirror"},
    ),
    "fetch/file-server": Case(
        "data fetch sudoku-extreme -q",
        "train.csv: cannot be downloaded: |by hand: put it at",
        env={"HF_ENDPOINT": "file:///etc"},
    ),
    "fetch/folder-in-the-way": Case(
        "data fetch sudoku-extreme --force",
        "train.csv: is a folder, and a file of that name is fetched; move it away",
        prepare=fetched("sudoku-extreme/train.csv", None),
        env=OWN_CACHE,
    ),
    "fetch/other-file": Case(
        "data fetch conceptarc",
        "concept_solutions.json: is not the file that was fetched",
        prepare=fetched("arc-agi/concept_solutions.json", "{}"),
        env=OWN_CACHE,
    ),
    "fetch/record": Case(
        "data fetch arc1",
        "fetched.json: is not a record of this version; move it away",
        prepare=fetched("arc-agi/fetched.json", "{'"),
        env=OWN_CACHE,
    ),
    "fetch/place-is-file": Case(
        "data fetch arc1",
        "arc-agi: cannot be read or written: ",
        prepare=fetched("arc-agi", "mine"),
        env=OWN_CACHE,
    ),
    "fetch/cache-is-file": Case(
        "data fetch arc1", "cannot be read or written: ", {"cache": "mine"}, env=OWN_CACHE
    ),
    "fetch/timeout": Case("data fetch arc1 --timeout 0", "'0' is not a number of seconds above 0"),
    "fetch/setting": Case("data fetch arc1 task.size=4", "unexpected 'task.size=4'"),
    "fetch/option": Case("data fetch arc1 --forse", "did you mean '--force'"),
    # Plotting -----------------------------------------------------------------------------------
    "plot/missing": Case("plot nope --table", "nope: no such run; name a run folder, or a metrics"),
    "plot/second-missing": Case("plot run nope --table", "nope: no such run"),
    "plot/no-log": Case("plot sub --table", "sub: holds no metrics.jsonl", {"sub": None}),
    "plot/checkpoint": Case("plot run/step_1 --table", "no metrics.jsonl; did you mean run?"),
    "plot/empty": Case("plot a --table", "a: holds no metrics; a run writes them", {"a": ""}),
    "plot/not-json": Case(
        "plot a --table", "a:2: is not JSON; mend the line", {"a": '{"kind": "x"}\n{,}\n'}
    ),
    "plot/binary": Case("plot a --table", "a:1: is not UTF-8", {"a": b"\xff\xfe\n" * 9}),
    "plot/other-json": Case("plot built/train/dataset.json --table", "dataset.json:1: "),
    "plot/no-step": Case("plot a --table", "a:1: has no step", {"a": '{"kind": "eval"}\n'}),
    "plot/metric": Case("plot run --table --metrics lm_los", "did you mean 'lm_loss'|logged: "),
    "plot/metric-misplaced": Case("plot --metrics lr run", "are required: RUN"),
    "plot/suffix": Case(
        "plot run --output a.jpg", "a.jpg: its name must end in .png, .pdf or .svg"
    ),
    "plot/output": Case("plot run --output no/a.png", "no/a.png: cannot be written"),
    "plot/output-folder": Case("plot run --output sub", "it is a folder", {"sub": None}),
    "plot/smooth": Case("plot run --smooth 0", "--smooth: '0' is not a whole number of at least 1"),
    "plot/no-run": Case("plot", "are required: RUN"),
    "generate/maze-option": Case("data generate --style loops", "--style: goes with --task maze"),
    "generate/maze-min-path": Case(
        "data generate --task maze --size 5 --min-path 50", "min_path: a 5x5 maze has no shortest"
    ),
    # The line -----------------------------------------------------------------------------------
    "line/command": Case("trian", "did you mean 'train'"),
    "line/another's option": Case(
        "data generate --config go.yaml", "unknown option '--config'; another sub-command has it"
    ),
    "line/option": Case(f"train {SHORT} --stpes 3", "unknown option '--stpes'"),
    "line/no-run": Case("evaluate", "RUN"),
    "line/no-puzzle": Case("solve run", "PUZZLE"),
    "line/no-folder": Case("parity", "DIR"),
    "line/no-action": Case("data", "ACTION"),
    "line/action": Case("data biuld", "biuld"),
    "line/extra": Case(f"solve run {FOUR} {FOUR}", "unexpected"),
    "line/device": Case("evaluate run --device tpu", "'tpu'"),
    "line/loud-and-quiet": Case("evaluate run -v -q", "not allowed with"),
    "diagnose/json": Case("diagnose --json no/a.json", "cannot be written"),
    "diagnose/extra": Case("diagnose now", "unexpected 'now'"),
}
if not gpu_available():
    for _name, _line in {"train": f"train {SHORT}", "evaluate": "evaluate run"}.items():
        CASES[f"gpu/{_name}"] = Case(f"{_line} --device gpu", "--device gpu: MLX finds no GPU here")

# In a process of their own: what the shell sees must be the same.
PROCESSES = ("config/several", "run/sealed-cut", "solve/empty-stdin", "parity/cut")
MODULES = ("value/huge-model", "file/letter", "line/no-action")


@pytest.fixture(name="made", scope="module")
def make_run_and_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a built dataset, and the cache."""
    folder: Path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_TRM_CACHE", str(folder / "cache"))
        assert main(f"train {SHORT} -q run_dir={folder / 'run'}".split()) == 0
        assert main(f"data build {TINY} --output {folder / 'built'}".split()) == 0
    return folder


@pytest.fixture(name="work")
def make_work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: copies of the run and of the data."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(made / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("run", "built"):
        shutil.copytree(made / name, tmp_path / name, symlinks=True)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str,
    work: Path,
    made: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code 2, one telling line, and every file as it was before."""
    case = CASES[name]
    for variable, value in {"no_proxy": "*", **case.env}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("mlx_trm.datasets.fetch.RETRIES", 0)
    words = set_up(case)
    before = snapshot(work)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(case.stdin.encode())))
    code = main(words)
    check(case, code, *capfd.readouterr())
    assert snapshot(work) == before
    assert not list((made / "cache").glob(".*")), "half-built data was left in the cache"


@pytest.mark.parametrize("name", PROCESSES + MODULES)
def test_bad_input_in_a_process(name: str, work: Path, made: Path) -> None:
    """The same through ``python -m mlx_trm COMMAND`` and ``python -m mlx_trm.COMMAND``."""
    case = CASES[name]
    words = set_up(case)
    start = [f"mlx_trm.{words[0]}", *words[1:]] if name in MODULES else ["mlx_trm", *words]
    before = snapshot(work)
    done = run_python("-m", *start, env={"MLX_TRM_CACHE": str(made / "cache")}, given=case.stdin)
    check(case, done.returncode, done.stdout, done.stderr)
    assert snapshot(work) == before


def test_there_are_enough_cases() -> None:
    """And their names say what they are about."""
    assert len(CASES) >= 150
    assert {name.split("/")[0] for name in CASES} >= {"config", "file", "built", "run", "solve"}
