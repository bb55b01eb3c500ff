"""Inputs for every parser of the package, made from sound ones; and the errors that are allowed."""

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple, Type

import mlx.core as mx
import numpy as np
from mutations import mutate
from torch_writer import save
from toy_arc import TASKS, YAML

from mlx_trm.config.loading import load_config
from mlx_trm.config.sections import TaskSpec
from mlx_trm.config.strict_yaml import parse_scalar, parse_yaml
from mlx_trm.datasets.arrays import open_array
from mlx_trm.datasets.names import load_names, pack_names, unpack_names
from mlx_trm.datasets.reading import read_metadata
from mlx_trm.datasets.sources import read_record
from mlx_trm.drawing.run_logs import read_log
from mlx_trm.errors import TRMError
from mlx_trm.inference.predictions import read_predictions
from mlx_trm.runs.progress import RunProgress
from mlx_trm.runs.state import read_state
from mlx_trm.runs.weights import read_safetensors
from mlx_trm.system.bounded import parse_json
from mlx_trm.tasks.arc.files import Subset, read_subset
from mlx_trm.tasks.arc.grids import parse_grid, parse_name
from mlx_trm.tasks.arc.lookup import split_grids, split_name
from mlx_trm.tasks.arc.voting import load_puzzles
from mlx_trm.tasks.go.files import read_boards
from mlx_trm.tasks.maze.files import parse_maze, read_mazes
from mlx_trm.tasks.sudoku.files import parse_puzzle, read_puzzles
from mlx_trm.upstream.torch_files import read_torch

# What parsers stumble over.
WORDS = (
    b"[", b"]", b"{", b"}", b'"', b"'", b",", b":", b"\\", b"\n", b"\r", b"\0", b"-", b"#", b"&a ",
    b"*a", b"!!python/name:os.system", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 5000,
    b"[" * 3000, b'{"a":' * 3000, b"\xff\xfe", b"\xef\xbb\xbf", b"\\ud800", b"null", b"true",
    b"0x1", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"|||", b"|||t9|||", b"..", b"/",
    b"question,answer\n", b"(" * 500, b"(1,)*9", b"'|O'", b"<<: ", b"---\n",
    b"\x1b[2J", b"1" * 200, b"\xc2\x85", b"%TAG",
)  # fmt: skip


class Parser(NamedTuple):
    """A parser.

    Attributes:
        read: reads the file of a name in the current folder.
        name: of the file.
        sound: contents to begin with.
        allowed: errors that it may raise.
    """

    read: Callable[[Path], Any]
    name: str
    sound: Tuple[bytes, ...]
    allowed: Tuple[Type[BaseException], ...] = (TRMError,)


def of_text(read: Callable[[str], Any]) -> Callable[[Path], Any]:
    """A parser of text as one of a file."""
    return lambda path: read(path.read_bytes().decode("utf-8", "surrogateescape"))


def encoded(value: Any) -> bytes:
    """JSON."""
    return json.dumps(value).encode()


def npy(array: np.ndarray) -> bytes:
    """NumPy's file of an array."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def make_parsers(folder: Path) -> Dict[str, Parser]:
    """All parsers, by name.

    Args:
        folder: for files that sound contents are taken from.
    """
    mx.save_safetensors(str(folder / "a.safetensors"), {"a": mx.ones((2, 3)), "b": mx.zeros((1,))})
    weights = (folder / "a.safetensors").read_bytes()
    save(folder / "a.pt", {"a": np.ones((2, 3), np.float32), "b": np.ones((1,), np.float32)})
    spec = {"vocab_size": 6, "seq_len": 16, "num_puzzle_identifiers": 3, "pad_id": 0,
            "blank_identifier_id": 0, "ignore_label_id": 0}  # fmt: skip
    progress = RunProgress()._asdict() if hasattr(RunProgress, "_asdict") else vars(RunProgress())
    puzzle, solved = "1.....2..3.....4", "1243342143122134"
    maze, path = "S #    # #     G", "S # o  #o#  oooG"
    header = "source,question,answer,rating\n"
    names = ["<blank>", "t1", "t1|||t3|||0132456789"]
    tests = {"e": {"train": [], "test": [{"input": [[1, 2]], "output": [[3]]}]}}
    log = b'{"kind": "train", "step": 1, "lm_loss": 1.5}\n{"kind": "eval", "step": 2, "x": 1}\n'
    answers = b'{"puzzle": "12", "correct": true}\n'
    record = {"format": 1, "sets": {"arc1": {"files": {"a": {"size": 3, "sha256": "x"}}}}}
    state = {"format": 1, "step": 3, "spec": spec, "progress": None,
             "sha256": {"model.safetensors": "a", "config.yaml": "b"}}  # fmt: skip
    subset = Subset("a", Path("tasks.json"), Path("none.json"))
    value = (ValueError,)
    return {
        "json": Parser(lambda p: parse_json(p.read_bytes()), "a", (encoded(TASKS),), value),
        "safetensors": Parser(read_safetensors, "a.safetensors", (weights,), value),
        "torch": Parser(read_torch, "a.pt", ((folder / "a.pt").read_bytes(),), value),
        "rows": Parser(lambda p: open_array(p, 2), "a.npy", (npy(np.ones((2, 3), np.uint8)),)),
        "array": Parser(lambda p: open_array(p, 1), "b.npy", (npy(np.arange(5)),)),
        "names": Parser(lambda p: load_names(p.parent), "identifiers.json", (encoded(names),)),
        "packed": Parser(lambda p: unpack_names(p.read_bytes()), "a.gz",
                         (pack_names(names), gzip.compress(b"[]")), value),
        "metadata": Parser(read_metadata, "dataset.json",
                           (encoded({**spec, "sets": ["all"], "total_groups": 2}),)),
        "spec": Parser(lambda p: TaskSpec.read(parse_json(p.read_bytes(), True) or {}), "a",
                       (encoded(spec),), (ValueError, AttributeError)),
        "progress": Parser(lambda p: RunProgress.read(parse_json(p.read_bytes())), "a",
                           (encoded(progress),), value),
        "state": Parser(lambda p: read_state(p.parent), "state.json", (encoded(state),)),
        "record": Parser(lambda p: read_record(p.parent), "fetched.json", (encoded(record),)),
        "yaml": Parser(of_text(parse_yaml), "a.yaml", (YAML.encode(),), value),
        "scalar": Parser(of_text(parse_scalar), "a", (b"[1e-4, a]", b"1_000", b'"x"', b".nan")),
        "config": Parser(load_config, "c.yaml", (YAML.encode(),)),
        "sudoku": Parser(lambda p: list(read_puzzles(p, 4)), "s.csv",
                         (f"{header}a,{puzzle},{solved},3\na,{puzzle},{solved},3\n".encode(),
                          f"puzzle,solution\n{puzzle},{solved}\n".encode())),
        "sudoku text": Parser(lambda p: list(read_puzzles(p, 4)), "s.txt",
                              (f"{puzzle} {solved} # a\n{puzzle}\n".encode(),)),
        "maze": Parser(lambda p: read_mazes(p, 4), "m.csv",
                       (f"{header}a,{maze},{path},8\nb,{maze},{path},8\n".encode(),)),
        "maze text": Parser(lambda p: read_mazes(p, 4), "m.txt",
                            ("\n".join(maze[at : at + 4] for at in (0, 4, 8, 12)).encode(),)),
        "go": Parser(lambda p: list(read_boards(p, "capture", 7, 0)), "g.sgf",
                     (b"(;SZ[7]AB[cb][db:bc]AW[cc]PL[B]TR[cc](;B[cd]C[x\\]])(;B[dc]))",
                      b"(;SZ[7]AB[ab]AW[aa]TR[aa])\n(;SZ[7]AB[ab]AW[aa]TR[aa])")),
        "go text": Parser(lambda p: list(read_boards(p, "territory", 7, 0)), "g.txt",
                          (b"# a\n" + b".XO.X..\n" * 7, b"/".join([b".XO.X.."] * 7))),
        "tasks": Parser(lambda _: read_subset(subset), "tasks.json", (encoded(TASKS["a"]),)),
        "tests": Parser(lambda p: load_puzzles(p.parent), "test_puzzles.json", (encoded(tests),)),
        "grid": Parser(of_text(parse_grid), "a", (b"[[0, 1], [2, 3]]", b"012/345")),
        "grids": Parser(of_text(lambda t: list(split_grids(t.splitlines()))), "a",
                        (encoded(TASKS["a"]), b"01\n23\n\n4\n", b"[[1]]")),
        "name": Parser(of_text(parse_name), "a", (names[2].encode(),)),
        "number": Parser(of_text(split_name), "a", (b"task:2",)),
        "puzzle": Parser(of_text(lambda t: parse_puzzle(t, 4)), "a", (puzzle.encode(),)),
        "maze given": Parser(of_text(lambda t: parse_maze(t, 4)), "a", (maze.encode(),)),
        "log": Parser(lambda p: read_log(p, "x"), "metrics.jsonl", (log,)),
        "predictions": Parser(read_predictions, "p.jsonl", (answers,)),
        "predictions csv": Parser(read_predictions, "p.csv", (b"puzzle,correct\n12,true\n3,\n",)),
    }  # fmt: skip


def inputs(parser: Parser, rng: random.Random) -> Iterator[bytes]:
    """Yield damaged contents without end."""
    others: List[bytes] = [*parser.sound, *WORDS]
    while True:
        content = rng.choice(parser.sound)
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            if rng.random() < 0.5:
                at = rng.randrange(len(content) + 1)
                stop = at + rng.choice((0, 0, 1, 4, 20))
                content = content[:at] + rng.choice(WORDS) + content[stop:]
            else:
                content = mutate(content, rng, others)
        yield content


def fuzz(parser: Parser, rng: random.Random, keep_on: Callable[[int], bool]) -> Tuple[int, int]:
    """Give a parser inputs as long as told; give how many it took, and how many it refused.

    Raises:
        AssertionError: with the input, if it raises what it must not, or says more than a line.
    """
    path, refused, count = Path(parser.name), 0, 0
    for content in inputs(parser, rng):
        if not keep_on(count):
            break
        count += 1
        path.write_bytes(content)
        try:
            parser.read(path)
        except parser.allowed as error:
            refused += 1
            said = str(error)
            assert "\n" not in said or "problems" in said.split("\n", maxsplit=1)[0], content[:500]
            assert len(said) < 20_000, content[:500]
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__}: {error}: {content[:500]!r}") from error
    return count, refused
