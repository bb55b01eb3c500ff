"""The bundled ARC-format puzzles: made again byte for byte, and what they promise."""

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import arc_samples
import numpy as np
import pytest
from arc_samples import KINDS, draw_colors, make_tasks, pair_key, write_samples

from mlx_trm.config.loading import load_config
from mlx_trm.errors import DataError
from mlx_trm.tasks.arc.task import SAMPLES
from mlx_trm.tasks.base import build_task
from mlx_trm.tasks.symmetries import dihedral_transform

BUNDLED = sorted(SAMPLES.glob("arc_tiny_*.json"))


def read(subset: str) -> Dict[str, List[Tuple[np.ndarray, np.ndarray]]]:
    """Read the pairs of all tasks of a bundled subset."""

    def load(what: str) -> Any:
        return json.loads((SAMPLES / f"arc_tiny_{subset}_{what}.json").read_text("utf-8"))

    found = {}
    challenges, solutions = load("challenges"), load("solutions")
    assert list(challenges) == list(solutions) == sorted(challenges)
    for name, task in challenges.items():
        pairs = [(pair["input"], pair["output"]) for pair in task["train"]]
        pairs += [(pair["input"], answer) for pair, answer in zip(task["test"], solutions[name])]
        assert len(task["train"]) == 4 and len(task["test"]) == len(solutions[name]) == 2
        assert all(list(pair) == ["input"] for pair in task["test"])
        found[name] = [(np.array(a, np.uint8), np.array(b, np.uint8)) for a, b in pairs]
    return found


def test_made_again(tmp_path: Path) -> None:
    """Seed 0 gives the bundled bytes, another seed others."""
    write_samples(tmp_path)
    assert [path.name for path in BUNDLED] == sorted(path.name for path in tmp_path.iterdir())
    assert len(BUNDLED) == 4
    for path in BUNDLED:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    write_samples(tmp_path, seed=1)
    for path in BUNDLED:
        assert (tmp_path / path.name).read_bytes() != path.read_bytes(), path.name


def test_the_bytes_are_those_recorded() -> None:
    """Recorded: a change makes figures measured with these files worthless."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in BUNDLED)).hexdigest()
    assert digest[:16] == "d61443f05b75a4de"


def test_numbers_and_sizes() -> None:
    """24 and 12 tasks with names of their own, grids of 3x3 or 5x5, one task a line."""
    training, evaluation = read("training"), read("evaluation")
    assert len(training) == 24 and len(evaluation) == 12 and not set(training) & set(evaluation)
    for name, pairs in {**training, **evaluation}.items():
        assert len(name) == 8 and int(name, 16) >= 0
        for given, answer in pairs:
            assert given.shape == (5, 5) and answer.shape in ((3, 3), (5, 5))
            assert max(given.max(), answer.max()) <= 9 and answer.any()
            assert not np.array_equal(given, answer)
    assert sum(path.stat().st_size for path in BUNDLED) < 150_000
    for path in BUNDLED:
        text = path.read_text("utf-8")
        assert text.count("\n") == (24 if "training" in path.name else 12) + 2
        assert "\r" not in text and " " not in text


def test_no_pair_comes_twice() -> None:
    """Not even turned, flipped or in other colours; nor does a test input of a task."""
    pairs = [
        p for subset in ("training", "evaluation") for task in read(subset).values() for p in task
    ]
    assert len({pair_key(pair) for pair in pairs}) == len(pairs) == 36 * 6


def test_pair_key() -> None:
    """Equal for every turn, flip and renaming; other where a cell, the size or the rule is."""
    rng = np.random.default_rng(3)
    first = rng.integers(0, 10, (3, 4)).astype(np.uint8)
    second = rng.integers(0, 10, (2, 3)).astype(np.uint8)
    key = pair_key((first, second))
    for number in range(8):
        names = np.append([0], rng.permutation(9) + 1).astype(np.uint8)
        moved = [dihedral_transform(names[grid], number) for grid in (first, second)]
        assert pair_key((moved[0], moved[1])) == key
    other = second.copy()
    other[1, 1] = 0 if other[1, 1] else 1
    assert pair_key((first, other)) != key != pair_key((second, first))
    assert pair_key((first, dihedral_transform(second, 4))) != key
    assert pair_key((first.reshape(4, 3), second)) != key
    black = np.zeros((2, 2), np.uint8)
    assert pair_key((black, black + 1)) != pair_key((black + 1, black))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_tasks_of_a_kind_differ(kind: Any) -> None:
    """From the same draws the three variants make three pairs: no task is another one again."""
    colors = draw_colors(np.random.default_rng(0), 9).reshape(3, 3)
    for seed in range(20):
        made = [kind(colors[variant], variant)(np.random.default_rng(seed)) for variant in range(3)]
        texts = {str([grid.tolist() for grid in pair]) for pair in made}
        if len(texts) == 3:
            return
    pytest.fail("two variants always make the same pair")


def check_recolour(given: np.ndarray, answer: np.ndarray) -> bool:
    """Black stays, every other colour becomes one other colour, none stays."""
    both = set(zip(given.ravel().tolist(), answer.ravel().tolist()))
    changed = both - {(0, 0)}
    names = [old for old, _ in changed]
    return len(names) == len(set(names)) <= 3 and all(a and b and a != b for a, b in changed)


RULES = {
    "recolour": check_recolour,
    "remove": lambda a, b: ((a == b) | (b == 0)).all() and len(set(a[b != a].tolist())) == 1,
    "ground": lambda a, b: (b != 0).all() and (a[a != 0] == b[a != 0]).all(),
    "frame": lambda a, b: (a[1:4, 1:4] == b[1:4, 1:4]).all()
    and len({*b[0], *b[4], *b[:, 0], *b[:, 4]}) == 1,
    "fill": lambda a, b: (a[a != b] == 0).all() and len(set(b[a != b].tolist())) == 1,
    "gravity": lambda a, b: any(
        (np.sort(np.rot90(a, k), axis=0) == np.rot90(b, k)).all() for k in range(4)
    ),
    "extend": lambda a, b: any((b == side).all() for side in (a[:1], a[4:], a[:, :1], a[:, 4:])),
    "line": lambda a, b: (a != 0).sum() == 2
    and (b != 0).sum() == 10
    and (a[a != 0] == b[a != 0]).all(),
    "complete": lambda a, b: any(
        (b == np.maximum(a, flipped)).all() and (b == np.flip(b, axis)).all()
        for axis, flipped in ((0, a[::-1]), (1, a[:, ::-1]))
    ),
    "crop": lambda a, b: any(
        np.array_equal(b, a[r : r + 3, c : c + 3]) for r in (0, 2) for c in (0, 2)
    ),
    "mirror": lambda a, b: any(np.array_equal(b, dihedral_transform(a, n)) for n in (4, 5, 6)),
    "largest": lambda a, b: ((b == 0) | (a == b)).all()
    and (b != 0).sum() in (np.bincount(a[a != 0]).max(), sorted(np.bincount(a[a != 0]))[-3]),
}


def test_the_pairs_follow_their_rules() -> None:
    """Checked by the rule in other words, for several seeds."""
    for seed in range(3):
        for tasks in make_tasks(seed).values():
            per_kind = len(tasks) // len(KINDS)
            for number, pairs in enumerate(tasks.values()):
                name = KINDS[number // per_kind].__name__
                for given, answer in pairs:
                    assert RULES[name](given, answer), (name, given, answer)


def test_too_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that always draws the same pair ends in one line."""
    pair = (np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8))

    def same(colors: np.ndarray, variant: int) -> Any:
        del colors, variant
        return lambda rng: pair

    monkeypatch.setattr(arc_samples, "KINDS", (same,))
    with pytest.raises(DataError, match="^same: too few different pairs; try another seed$"):
        make_tasks()


def test_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """arc_tiny.yaml learns these tasks: 36 groups, 12 of them with tests, 8 puzzles each."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path))
    config = load_config("arc_tiny.yaml")
    task = build_task(config.task, config.task_seed)
    train, test = task.dataset("train"), task.dataset("test")
    assert len(train) == 8 * (24 * 6 + 12 * 4) and len(test) == 8 * 12 * 2
    assert train.spec.num_puzzle_identifiers == 8 * 36 + 1 and train.spec.seq_len == 25
