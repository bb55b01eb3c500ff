"""The chess task: data sets, text, drawings, scores, settings."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.config.loading import load_config
from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import ConfigError, DataError
from mlx_trm.inference.evaluator import Evaluator
from mlx_trm.inference.solver import Solver
from mlx_trm.models.base import build_model
from mlx_trm.tasks import Chess, ChessConfig, ScoredRows, build_task
from mlx_trm.tasks.chess.tokens import EMPTY, FROM, TO, VOCABULARY, position_key

chess = pytest.importorskip("chess", reason="python-chess is not installed (extra chess)")

# pylint: disable=wrong-import-position
from mlx_trm.tasks.chess.generator import Wanted, generate_puzzles  # noqa: E402
from mlx_trm.tasks.chess.positions import decode_move  # noqa: E402

BACK_RANK = "6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1"
# Two moves mate: Ra8 and Rb8.
TWO = "6k1/5ppp/8/8/8/8/8/RR2K3 w - - 0 1"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))


def task(kind: str = "mate1", seed: int = 0, **more: Any) -> Chess:
    """A task with these settings."""
    return Chess(ChessConfig("chess", kind=kind, **more), seed)


def answer(move: str) -> np.ndarray:
    """An answer's tokens."""
    tokens = np.full(64, EMPTY, np.uint8)
    for name, token in ((move[:2], FROM), (move[2:4], TO)):
        tokens[chess.parse_square(name) ^ 56] = token
    return tokens


def test_the_spec() -> None:
    """64 cells, one vocabulary for every kind, so that weights of one begin another."""
    assert task().spec == task("moves").spec == TaskSpec(VOCABULARY, 64)
    assert len(task().token_names) == VOCABULARY == 30


@pytest.mark.parametrize("kind", ["moves", "mate1", "mate2"])
def test_built_data_sets(kind: str) -> None:
    """Generated, different, apart, the same for the same seed; each label is right."""
    counts = {"train_puzzles": 1, "test_puzzles": 1}
    if kind != "mate2":  # which takes a second
        counts = {"train_puzzles": 6, "test_puzzles": 3}
    made = task(kind, style="endings", **counts)
    keys = []
    for split, count in (("train", counts["train_puzzles"]), ("test", counts["test_puzzles"])):
        dataset = made.dataset(split)
        inputs = np.load(dataset.path / "all__inputs.npy")
        labels = np.load(dataset.path / "all__labels.npy")
        assert inputs.shape == labels.shape == (count, 64)
        assert made.check_many(inputs, labels).all()
        keys += [position_key(row) for row in inputs]
        assert made.find_built(split) is not None
        if kind == "mate2":
            continue
        again = list(task(kind, style="endings", **counts).groups(split, _rng(split)))
        assert (np.concatenate([part.inputs for part in again]) == inputs).all()
    assert len(set(keys)) == sum(counts.values())
    other = task(kind, style="endings", seed=1, **counts)
    assert other.cache_key() != made.cache_key()


def _rng(split: str) -> np.random.Generator:
    return np.random.default_rng([0, ("train", "test").index(split)])


def test_settings_that_matter_are_the_key() -> None:
    """Ratings, say, are of files only, and online augmentation rebuilds nothing."""
    key = task().cache_key()
    assert key == task(augment="none", min_rating=1000).cache_key()
    for more in ({"style": "endings"}, {"unique": False}, {"test_puzzles": 7}, {"kind": "mate2"}):
        assert task(**{"kind": "mate1", **more}).cache_key() != key


def test_training_leaves_out_what_the_test_set_has() -> None:
    """Also where both would play the same games, and mirrored positions are the same."""
    made = task("moves", style="games", train_puzzles=300, test_puzzles=300)
    keys = {
        split: [
            position_key(row) for part in made.groups(split, _rng(split)) for row in part.inputs
        ]
        for split in ("train", "test")
    }
    assert [len(set(each)) for each in keys.values()] == [300, 300]
    assert not set(keys["train"]) & set(keys["test"])
    plain = np.random.default_rng([0, 0])
    found = generate_puzzles(Wanted("moves", "games"), 300, plain)
    assert {position_key(inputs) for inputs, _ in found} & set(keys["test"])


def test_variants_are_of_training_alone(tmp_path: Path) -> None:
    """They follow what is generated or read, keep the test set out, and are part of the key."""
    plain = task(style="endings", train_puzzles=3, test_puzzles=3)
    made = task(style="endings", train_puzzles=3, test_puzzles=3, variants=5)
    keys = {}
    for name, each, split in (
        ("plain", plain, "train"),
        ("varied", made, "train"),
        ("test", made, "test"),
    ):
        inputs = np.concatenate([part.inputs for part in each.groups(split, _rng(split))])
        keys[name] = [position_key(row) for row in inputs]
    assert len(keys["test"]) == 3 < len(keys["varied"]) <= 18
    assert set(keys["plain"]) < set(keys["varied"]) and not set(keys["varied"]) & set(keys["test"])
    assert made.cache_key(("train",)) != plain.cache_key(("train",))
    assert made.cache_key(("test",)) == plain.cache_key(("test",))
    file = tmp_path / "mates.txt"
    file.write_text(BACK_RANK + "\n")
    read = task(train_file=str(file), variants=4, test_puzzles=1)
    found = [row for part in read.groups("train", _rng("train")) for row in part.inputs]
    assert len(found) > 1 and read.format(found[0]) == read.format(read.parse(BACK_RANK))
    assert read.content("train") != task(train_file=str(file), test_puzzles=1).content("train")
    problems = ChessConfig("chess", kind="moves", variants=1).problems()
    assert problems == ["variants: are made of mates; set kind to mate1 or mate2, or variants to 0"]


def test_mates_are_answered_by_one_move() -> None:
    """By whatever reads a model's answer: evaluation, a solver's steps, a search."""
    config = load_config(
        "chess_moves_tiny.yaml",
        ["task.kind=mate1", "task.style=endings", "task.train_puzzles=1", "task.test_puzzles=5"],
    )
    made = build_task(config.task)
    model = build_model(config.model, made.spec)
    assert made.decoder is not None and task("moves").decoder is None
    metrics = Evaluator(model, config, made).run()["all"]
    inputs = np.array(made.dataset("test").arrays["all"].inputs)
    labels = np.array(made.dataset("test").arrays["all"].labels)
    solver = Solver(model, config, task=made)
    tokens = np.array([list(solver.steps(row))[-1].tokens for row in inputs])
    assert all(decode_move(row) is not None for row in tokens)
    found = [result.tokens for result in solver.search(list(inputs))]
    assert (np.array(found) == tokens).all()
    assert metrics["accuracy"] == pytest.approx((tokens == labels).mean())
    assert metrics["exact_accuracy"] == (tokens == labels).all(axis=1).mean()
    legal = np.mean(
        [made.describe_answer(*pair) != "no legal move" for pair in zip(inputs, tokens)]
    )
    assert metrics["legal_move"] == pytest.approx(legal)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(("games", "endings")))
def test_format_and_parse_are_inverse(seed: int, style: str) -> None:
    """Of positions; and whatever a model may predict has a text on one line."""
    made = task("moves")
    found = generate_puzzles(Wanted("moves", style), 1, np.random.default_rng(seed))
    inputs, labels = next(found)
    assert (made.parse(made.format(inputs)) == inputs).all() and "/" not in made.format(labels)
    rng = np.random.default_rng(seed)
    for low, high in ((0, 30), (1, 24), (24, 26), (0, 255)):
        noise = rng.integers(low, high, 64).astype(np.uint8)
        assert "\n" not in made.format(noise)
        made.board(noise, inputs)
        made.render(noise, inputs, color=True)
        made.describe_answer(inputs, noise)


def test_parse_reads_fen_and_boards() -> None:
    """With fields that are missing, rows of letters, and the square of a piece behind."""
    made, tokens = task(), task().parse(BACK_RANK)
    rows = "......k.\n.....ppp\n" + "........\n" * 5 + "R...K..."
    spaced = "\n".join(" ".join(row) for row in rows.split("\n"))
    for text in (BACK_RANK[:-8], BACK_RANK.split()[0], rows, spaced, rows + " w - -"):
        assert (made.parse(text) == tokens).all()
    black = "r3k3/8/8/8/8/8/5PPP/6K1 b - - 0 1"
    assert (made.parse(black) == tokens).all()
    moves = task("moves")
    marked = moves.parse(f"{BACK_RANK} a1")
    assert marked[56] == 20 and (np.delete(marked, 56) == np.delete(tokens, 56)).all()
    assert (moves.parse(f"{black} a8") == marked).all() and (
        moves.parse(f"{rows} a1") == marked
    ).all()
    assert moves.format(marked) == f"{BACK_RANK} a1"
    lines = f"{BACK_RANK} # comment\n\n{rows}\nw - -\n{rows}\n{black}".split("\n")
    found = list(made.split_puzzles(lines))
    assert [number for number, _ in found] == [1, 3, 12, 20]
    assert all((made.parse(text) == tokens).all() for _, text in found)


@pytest.mark.parametrize(
    "text, said",
    [
        ("8/8/8/8/8/8/8/8 w - - 0 1", "empty"),
        ("kk6/8/8/8/8/8/8/K7 w - - 0 1", "more than one king"),
        ("8/8/8/8/8/8/8/K7 w - - 0 1", "Black has no king"),
        ("k7/8/8/8/8/8/8/8 w - - 0 1", "White has no king"),
        ("k6P/8/8/8/8/8/8/K7 w - - 0 1", "first or the last rank"),
        ("k7/8/8/8/8/8/8/RK6 w - - 0 1", "not to move is in check"),
        ("k7/8/8/8/8/8/8/K7 w KQ - 0 1", "castling"),
        ("k7/8/8/8/8/8/8/K7 w - e6 0 1", "en passant"),
        ("k7/8/8/8/8/8/8/K8 w - - 0 1", "cannot be read"),
        ("k7/8/8/8/8/8/8/K7 x - - 0 1", "cannot be read"),
        ("k7/8/8/8/8/8/K7 w - - 0 1", "cannot be read"),
        ("k7/8/8/8/8/8/8/K7 w - - 0 1 e2", "not what follows"),
        ("k7/8/8/8/8/8/8/K7 w - - zero 1", "not what follows"),
        ("k7/8/8/8/8/8/8/K7 w - - 999999999 1", "not what follows"),
        ("", "0 squares"),
        ("k.......", "8 squares"),
        ("hello", "0 squares"),
    ],
)
def test_bad_positions_are_one_line(text: str, said: str) -> None:
    """What is wrong, and how to write it."""
    with pytest.raises(DataError, match=said) as caught:
        task().parse(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("text", [BACK_RANK, BACK_RANK + " e5", BACK_RANK + " g8", "8/8 e2"])
def test_moves_want_a_piece(text: str) -> None:
    """The square is named, and holds a piece of the side to move."""
    with pytest.raises(DataError):
        task("moves").parse(text)


def test_any_mating_move_counts() -> None:
    """The scorer and the check know the rules, exact accuracy the label only."""
    made = task()
    inputs = made.parse(TWO)
    rows = np.stack([answer(move) for move in ("a1a8", "b1b8", "a1a7", "a1h8", "a1a1")])
    assert made.check_many(np.stack([inputs] * 5), rows).tolist() == [True, True] + [False] * 3
    scorer = made.scorer()
    assert scorer is not None
    numbers = np.zeros(5)
    scorer.update(ScoredRows(np.stack([inputs] * 5), rows, rows, numbers, numbers, numbers))
    assert scorer.result() == {"legal_move": 0.6, "mate": 0.4}
    assert task("moves").scorer() is None
    assert made.describe_answer(inputs, rows[0]) == "Ra8#, mate"
    assert made.describe_answer(inputs, rows[2]) == "Ra7, which is no mate"
    assert made.describe_answer(inputs, rows[3]) == "no legal move"


def test_mate_in_two_is_any_first_move_that_forces() -> None:
    """Every reply has to be answered by mate; mate at once is no worse."""
    made = task("mate2")
    inputs = made.parse("7k/8/8/8/8/8/R7/1R2K3 w - - 0 1")
    right = [made.check(inputs, answer(move)) for move in ("b1b7", "a2a7", "b1b8", "e1e2")]
    assert right == [True, True, False, False]
    assert made.describe_answer(inputs, answer("a2a7")) == "Ra7, mate in two"
    assert made.check(made.parse(TWO), answer("a1a8"))
    labels, problems = made.answers(np.stack([inputs, made.parse(TWO), made.parse(BACK_RANK)]))
    assert made.check(inputs, labels[0])
    assert problems == {1: "there is mate in one already", 2: "there is mate in one already"}
    start = made.parse(chess.STARTING_FEN)
    assert task("mate1").answers(start[None])[1] == {0: "there is no mate in one"}


def test_drawings() -> None:
    """Pieces stay below the marks of an answer; another mate is not wrong."""
    made = task()
    inputs, right, other, bad = made.parse(TWO), *map(answer, ("a1a8", "b1b8", "a1a7"))
    board = made.board(right, inputs, right, inputs)
    assert board.shape == (8, 8) and board.symbols[7, 0] == "R" and board.symbols[0, 6] == "k"
    assert np.argwhere(board.changed).tolist() == [[0, 0], [7, 0]] and not board.wrong.any()
    assert not made.board(other, inputs, right).wrong.any()
    assert not made.board(inputs, inputs, right).wrong.any()
    assert np.argwhere(made.board(bad, inputs, right).wrong).tolist() == [[0, 0], [1, 0]]
    assert board.svg().startswith("<svg") and made.image(right, inputs).shape == (8, 8, 3)
    drawn = made.render_step(bad, right, inputs, right)
    assert drawn.count("[·]") == 1 and drawn.count("(R)") == 1
    assert " · *" in drawn and "[·]*" in drawn
    assert "\033[" in made.render(right, inputs, color=True)
    moves = task("moves")
    assert "<R>" in moves.render(moves.parse(f"{TWO} a1"))
    promoted = made.parse("8/P6k/8/8/8/8/8/K7")
    tokens = answer("a7a8")
    tokens[0] = TO + 1
    assert made.board(tokens, promoted).symbols[0, 0] == "=Q"
    assert made.format(tokens) == "a7a8q"


def test_without_python_chess(monkeypatch: Any) -> None:
    """One line says what to install."""
    for missing in (None, type(sys)("chess")):
        monkeypatch.setitem(sys.modules, "chess", missing)
        with pytest.raises(ConfigError, match=r"mlx_trm\[chess\]"):
            build_task(ChessConfig("chess"))


@pytest.mark.parametrize("name", ["chess_moves_tiny.yaml", "chess_mate1.yaml"])
def test_presets(name: str) -> None:
    """They load, and their task is made."""
    config = load_config(name)
    assert isinstance(build_task(config.task, config.task_seed), Chess)
    (problem,) = ChessConfig("chess", min_rating=5, max_rating=4).problems()
    assert "max_rating" in problem
