"""Chess files: Lichess' CSV, positions as text, ratings, rows that are wrong."""

import gzip
import sys
from pathlib import Path
from typing import Any, List, Optional

import numpy as np
import pytest

from mlx_trm.errors import DataError
from mlx_trm.system.bounded import open_unpacked
from mlx_trm.tasks import Chess, ChessConfig, puzzle_files

pytest.importorskip("chess", reason="python-chess is not installed (extra chess)")

HEADER = "PuzzleId,FEN,Moves,Rating,RatingDeviation,Popularity,NbPlays,Themes,GameUrl,OpeningTags"
ONE = ("6k1/p4ppp/8/8/8/8/8/3RK3 b - - 0 1", "a7a6 d1d8", 600, "endgame mateIn1 short")
# The same from the other side.
BLACK = ("3rk3/8/8/8/8/8/P4PPP/6K1 w - - 0 1", "a2a3 d8d1", 800, "mateIn1")
TWO = ("8/7k/8/8/8/8/R7/1R2K3 b - - 0 1", "h7h8 a2a7 h8g8 b1b8", 900, "mate mateIn2")
OTHER = ("8/7k/8/8/8/8/R7/1R2K3 b - - 0 1", "h7h8 e1e2", 1500, "endgame")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))


def write(path: Path, *rows: Any, header: str = HEADER) -> str:
    """Write a file of Lichess' form."""
    lines = [
        f"id{number},{fen},{moves},{rating},80,90,100,{themes},https://lichess.org/x,"
        for number, (fen, moves, rating, themes) in enumerate(rows)
    ]
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return str(path)


def task(kind: str, **more: Any) -> Chess:
    """A task of a kind."""
    return Chess(ChessConfig("chess", kind=kind, **more))


def read(path: str, kind: str, **more: Any) -> List[List[str]]:
    """Questions and answers of a file, as the task trains on them."""
    made = task(kind, test_file=path, **more)
    return [
        [made.format(each) for each in pair]
        for part in made.groups("test", np.random.default_rng(0))
        for pair in zip(part.inputs, part.labels)
    ]


def test_rows_of_a_theme(tmp_path: Path) -> None:
    """The opponent's move is played; what Black solves is seen as White's."""
    path = write(tmp_path / "p.csv", ONE, BLACK, TWO, OTHER)
    # Both are one position, as the side to move sees it.
    question = "6k1/5ppp/p7/8/8/8/8/3RK3 w - - 0 1"
    assert read(path, "mate1") == [[question, "d1d8"]] * 2
    assert read(path, "mate2") == [["7k/8/8/8/8/8/R7/1R2K3 w - - 0 1", "a2a7"]]
    moves = read(path, "moves")
    assert len(moves) == 4
    assert moves[3] == ["7k/8/8/8/8/8/R7/1R2K3 w - - 0 1 e1", "d1 f1 d2 e2 f2"]


def test_castling_is_read_however_it_is_written(tmp_path: Path) -> None:
    """As the king moves, or onto the rook: one answer, which mates."""
    fen = "5k2/p7/8/8/8/6R1/4R3/4K2R b K - 0 1"
    rows = [(fen, f"a7a6 {move}", 1, "mateIn1") for move in ("e1g1", "e1h1")]
    path = write(tmp_path / "p.csv", *rows)
    assert [answer for _, answer in read(path, "mate1")] == ["e1g1"] * 2


def test_ratings_choose(tmp_path: Path) -> None:
    """At least, at most; they are part of the cache's key."""
    path = write(tmp_path / "p.csv", ONE, BLACK)
    assert len(read(path, "mate1", min_rating=700)) == len(read(path, "mate1", max_rating=700)) == 1
    assert len(read(path, "mate1", min_rating=600, max_rating=800)) == 2
    keys = {
        task("mate1", test_file=path, min_rating=low).cache_key(["test"])
        for low in (None, 600, 700)
    }
    assert len(keys) == 3
    with pytest.raises(DataError, match="no puzzle that is wanted.*min_rating 900"):
        read(path, "mate1", min_rating=900)


def test_files_for_evaluation_are_judged_by_the_rules(tmp_path: Path) -> None:
    """Ratings come along; of mates no label says which move."""
    path = write(tmp_path / "p.csv", ONE, TWO, BLACK)
    (part,) = task("mate1").read_file(path)
    assert part.ratings is not None and part.ratings.tolist() == [600, 800]
    assert not part.labels.any()
    (part,) = task("moves").read_file(path)
    assert part.labels.any() and len(part.inputs) == 3


def test_text_is_answered_by_search(tmp_path: Path) -> None:
    """A position a line, or a row a line."""
    path = tmp_path / "p.txt"
    board = "......k.\n.....ppp\n" + "........\n" * 5 + "R...K...\n"
    path.write_text(f"# one\n3r2k1/8/8/8/8/8/5PPP/6K1 b - - 0 1\n{board}", encoding="utf-8")
    assert [answer for _, answer in read(str(path), "mate1")] == ["d1d8", "a1a8"]
    path.write_text("6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1 e1\n", encoding="utf-8")
    assert read(str(path), "moves")[0][1] == "d1 f1 d2 e2 f2"


def bad(row: Any, **changes: Any) -> Any:
    """A row with other fields."""
    names = ("fen", "moves", "rating", "themes")
    return tuple(changes.get(name, value) for name, value in zip(names, row))


@pytest.mark.parametrize(
    "row, said",
    [
        (bad(ONE, fen="6k1/p4ppp/8/8/8/8/8/3RKK2 b - - 0 1"), "more than one king"),
        (bad(ONE, fen="nonsense"), "cannot be read"),
        (bad(ONE, fen=""), "cannot be read"),
        (bad(ONE, moves="a7a6 d1d9"), "is no move"),
        (bad(ONE, moves="a7a6 d1e2"), "not legal"),
        (bad(ONE, moves="a7a2 d1d8"), "not legal"),
        (bad(ONE, moves="a7a6 d1d7"), "without mate"),
        (bad(ONE, moves="a7a6"), "has 1 moves"),
        (bad(ONE, moves=""), "has 0 moves"),
        (bad(ONE, rating="high"), "rating"),
        (bad(TWO, themes="mateIn1"), "has 4 moves"),
    ],
)
def test_bad_rows_are_one_line(tmp_path: Path, row: Any, said: str) -> None:
    """File, line, and what is wrong there."""
    path = write(tmp_path / "p.csv", ONE, row)
    with pytest.raises(DataError, match=said) as caught:
        read(path, "mate1")
    assert str(caught.value).startswith(f"{path}:3: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("p.csv", b"", "columns FEN, Moves"),
        ("p.csv", b"a,b\n1,2\n", "columns FEN, Moves"),
        ("p.csv", (HEADER + "\n").encode(), "no puzzle"),
        ("p.csv", (HEADER + "\n1,2\n").encode(), "2 columns"),
        ("p.csv.zst", b"\x28\xb5\x2f\xfd and more", "damaged"),
        ("p.csv.gz", b"\x1f\x8b\x08\x00 and more", "damaged"),
        ("p.txt", b"\xff\xfe\n", "UTF-8"),
        ("p.txt", b"6k1/8/8/8/8/8/8/K7 w - - 0 1\n", "1: there is no mate in one"),
        ("p.txt", b"\n\nkk6/8/8/8/8/8/8/K7\n", "3: no legal position"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_dead_files_are_one_line(
    tmp_path: Path, name: str, content: Optional[bytes], said: str
) -> None:
    """Empty, of other columns, packed, no text, not there."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read(str(path), "mate1")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_packed_files_are_read_as_they_are(tmp_path: Path) -> None:
    """In one stream or in several, as pzstd packs Lichess' files; cut short they are refused."""
    pytest.importorskip("zstandard", reason="zstandard is not installed (extra chess)")
    import zstandard

    plain = Path(write(tmp_path / "p.csv", *[ONE, BLACK, TWO] * 400)).read_bytes()
    pack = zstandard.ZstdCompressor().compress
    middle = plain.index(b"\n", 40_000)
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0size"  # in front of each stream
    for name, packed in (
        ("a.csv.zst", pack(plain)),
        ("b.zst", pack(plain[:middle]) + pack(plain[middle:])),
        ("c.csv.gz", gzip.compress(plain)),
        ("d.csv.zst", skipped + pack(plain[:middle]) + skipped + pack(plain[middle:])),
    ):
        path = tmp_path / name
        path.write_bytes(packed)
        assert len(read(str(path), "mate1")) == 800
        path.write_bytes(packed[: len(packed) // 2])
        with pytest.raises(DataError, match="cut short"):
            read(str(path), "mate1")


def test_without_its_library_zstd_is_a_line(tmp_path: Path, monkeypatch: Any) -> None:
    """Which says what unpacks it."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = tmp_path / "p.csv.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd and more")
    with pytest.raises(DataError, match="pip install zstandard, or unpack it with 'zstd -d'"):
        read(str(path), "mate1")


@pytest.mark.parametrize("name", ["p.csv", "p.txt", "p"])
@pytest.mark.parametrize("columns", [slice(0, None), slice(1, 3), slice(0, 3)])
def test_a_file_without_a_header(tmp_path: Path, name: str, columns: Any) -> None:
    """Rows of Lichess' are known by a FEN and moves; its themes and ratings by their places."""
    path = tmp_path / name
    lines = Path(write(path, ONE, BLACK, TWO, OTHER)).read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(",".join(line.split(",")[columns]) for line in lines) + "\n")
    with_header = [read(str(path), kind) for kind in ("mate1", "mate2", "moves")]
    rows = "\ufeff" + "\n".join(",".join(line.split(",")[columns]) for line in lines[1:])
    path.write_text(rows, encoding="utf-8")
    assert [read(str(path), kind) for kind in ("mate1", "mate2", "moves")] == with_header
    found = task("mate1").split_puzzles(rows[1:].splitlines())
    assert [number for number, text in found if task("mate1").parse(text).any()] == [1, 2]
    if columns == slice(0, None):
        assert len(read(str(path), "mate1", min_rating=700)) == 1
    path.write_text(rows.replace("d1d8", "d1e8"), encoding="utf-8")
    with pytest.raises(DataError, match="p.*:1: the move d1e8 is not legal"):
        read(str(path), "mate1")
    with pytest.raises(DataError, match="line 1: the move d1e8 is not legal"):
        list(task("mate1").split_puzzles(rows[1:].replace("d1d8", "d1e8").splitlines()))
    path.write_text(rows + "\nx\n", encoding="utf-8")
    with pytest.raises(DataError, match=":5: 1 columns"):
        read(str(path), "mate1")


def test_a_quoted_header_is_one(tmp_path: Path, monkeypatch: Any) -> None:
    """Of question and answer; and the file is opened once."""
    path = tmp_path / "p.csv"
    opened: List[Any] = []

    def note(path: Path) -> Any:
        opened.append(path)
        return open_unpacked(path)

    monkeypatch.setattr(puzzle_files, "open_unpacked", note)
    path.write_text('"question","answer"\n"6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1","a1a8"\n')
    assert [answer for _, answer in read(str(path), "mate1")] == ["a1a8"]
    assert opened == [path]


def test_without_themes_the_rules_tell(tmp_path: Path) -> None:
    """Which rows mate in one, and in two whatever is replied."""
    start = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1"
    avoided = (start, "f2f3 e7e5 g2g4 d8h4", 900, "opening")
    path = write(tmp_path / "p.csv", ONE, BLACK, TWO, OTHER, avoided)
    short = tmp_path / "q.csv"
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    short.write_text("\n".join(",".join(line.split(",")[1:3]) for line in lines) + "\n")
    assert read(str(short), "mate1") == read(path, "mate1")
    assert read(str(short), "mate2") == read(path, "mate2")
    assert len(read(str(short), "moves")) == 5


def test_text_has_no_ratings(tmp_path: Path) -> None:
    """So none can be asked for; nor of a CSV without the column."""
    path = tmp_path / "p.txt"
    path.write_text("6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="min_rating"):
        read(str(path), "mate1", min_rating=1)
    path = tmp_path / "p.csv"
    path.write_text(f"FEN,Moves\n{ONE[0]},{ONE[1]}\n", encoding="utf-8")
    assert len(read(str(path), "mate1")) == 1
    with pytest.raises(DataError, match="column Rating"):
        read(str(path), "mate1", max_rating=1)


def test_what_the_test_file_has_is_not_generated(tmp_path: Path) -> None:
    """Positions of the other split's file are left out, mirrored ones, too."""
    made = task("moves", train_puzzles=30)
    rows = next(iter(made.groups("train", np.random.default_rng(3)))).inputs
    path = tmp_path / "test.txt"
    path.write_text("\n".join(made.format(row) for row in rows[:20]), encoding="utf-8")
    other = task("moves", train_puzzles=30, test_file=str(path))
    again = next(iter(other.groups("train", np.random.default_rng(3)))).inputs
    assert not {row.tobytes() for row in again} & {row.tobytes() for row in rows[:20]}
    assert other.cache_key(["train"]) != made.cache_key(["train"])
