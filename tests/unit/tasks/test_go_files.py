"""Boards of text and SGF: what is read, and what is refused in one line."""

from pathlib import Path
from typing import List

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.cli.puzzles import read_given
from mlx_trm.errors import DataError
from mlx_trm.tasks import GoConfig, build_task
from mlx_trm.tasks.go.files import (
    format_board,
    parse_board,
    read_boards,
    read_cells,
    split_boards,
)
from mlx_trm.tasks.go.rules import rules_of
from mlx_trm.tasks.go.sgf import read_nodes, split_trees

LADDER = "......./..XX.../.XW..../......./......./......./......."
ROWS = LADDER.split("/")
SGF = "(;GM[1]FF[4]SZ[7]AB[cb][db][bc]AW[cc]PL[B]"


def capture(text: str) -> str:
    """A capture puzzle on 7x7, read and written again."""
    return format_board(parse_board(text, "capture", 7), "capture", 7)


@pytest.mark.parametrize(
    "text",
    [
        LADDER,
        "\n".join(ROWS),
        "".join(ROWS),
        LADDER.lower(),
        LADDER.replace(".", "+"),
        LADDER.replace("X", "●").replace(".", "_"),
        "\n".join(" ".join(row) for row in ROWS),
        "  A B C D E F G\n"
        + "\n".join(f"{7 - i} {' '.join(r)} {7 - i}" for i, r in enumerate(ROWS)),
        "A B C D E F G\n" + "\n".join(f"{7 - i} {row}" for i, row in enumerate(ROWS)) + "\nABCDEFG",
        "+-------+\n" + "\n".join(f"|{row}|" for row in ROWS) + "\n+-------+",
        "\n".join(
            ["╔" + "═" * 15 + "╗", *(f"║ {' '.join(r)} ║" for r in ROWS), "╚" + "═" * 15 + "╝"]
        ),
        "┌──────────────┐\n" + "\n".join(f"│{' '.join(r)} │" for r in ROWS) + "\n└──────────────┘",
        SGF + "TR[cc])",
        SGF + ")",
        SGF + "\n;B[cd];W[dc](;B[ec])(;B[dd]))",
        SGF.replace("PL[B]", "") + "C[a \\] in a comment ) (]MA[cc])",
        "(;gm[1]sz[7]ab[cb][db][bc]aw[cc]pl[b])",
        "(;GaMe[1]SiZe[7]AddBlack[cb][db][bc]AddWhite[cc]PLayer[B])",
        SGF.replace("AB", "\nAB").replace("SZ", "\n\nSZ") + ")\n\n",
        "From: me (a friend)\nHere it is:\n" + SGF + ")\nRegards",
        "(" + SGF + "))",
        "( ;SZ[7:7]\n AB [cb:db] [bc]\n AW[cc:cc] ;B[cd])",
        "(;SZ[ 07 : 7 ]AB[CB:DB][BC]AW[ cc ]PL[1]_K1[x]B2[y])",
        SGF.replace("PL[B]", "M[cc])"),
        SGF + ";B[cd]TR[cd])",
        "(;SZ[7]AW[cc]AB[cb:dc][bc]AE[dc]PL[B])",
        SGF + "SQ[cc][cd];B[])",
        SGF.replace("AB", "AE[cb]AB") + "AE[ga];AB[gg];AE[gg])",
        SGF.replace("[cc]", "[cc][gg]") + "AE[gg])",
    ],
)
def test_the_same_board_in_many_forms(text: str) -> None:
    """With coordinates, frames, spaces, as SGF."""
    assert capture(text) == LADDER
    assert [capture(each) for _, each in split_boards(text.splitlines(), 7)] == [LADDER]


SETTLED = "......./..XX.../.XO..../......./....X../..O..../......."
COLUMNS = "   A B C D E F G"


def printed(row: str = " {number} {points} {number}", ends: str = COLUMNS) -> str:
    """The board as a program prints it."""
    rows = (
        row.format(number=7 - at, points=" ".join(points))
        for at, points in enumerate(SETTLED.split("/"))
    )
    return "\n".join([ends, *rows, ends])


PRINTED = {
    "showboard": printed(),
    "its answer": "= " + printed().lstrip() + "\n\n",
    "words beside": printed().replace(" 5\n", " 5     WHITE (O) has captured 0 stones\n"),
    "words above": "White (O) has captured 0 pieces\n" + printed() + "\nBlack(1): ",
    "last move": printed().replace(" X X ", " X(X)"),
    "square brackets": printed().replace(" O .", "[O].", 1),
    "moves numbered": "MoveNum: 3 HASH: CDC\n"
    + printed(" {number} {points}").replace("X X", "X X2"),
    "framed": "Move: 2\n" + printed("  {number} | {points} |", "    +---------------+"),
    "framed, last": "Move: 2\n"
    + printed("  {number} | {points} |", "    +--+").replace("X X ", "X X)"),
    "bulletin": "$$B To play\n" + printed("$$ | {points} |", "$$  ---------------"),
    "points": printed("{points}", "").replace(".", "·").replace("X", "●").replace("O", "○"),
    "crossings": printed("{points}", "").replace(" ", "").replace(".", "┼"),
    "small letters": printed("{points}", "").lower(),
    "other letters": printed("{points}", "").replace("X", "B").replace("O", "W"),
    "# for black": printed().replace("X", "#"),
    "# and +": printed("{points}", "").replace("X", "#").replace(".", "+"),
    "# on one line": SETTLED.replace("X", "#"),
    "# in a frame": printed("| {points} |", "+---------------+").replace("X", "#"),
    "# and comments": "# to play\n" + printed("{points}  # so", "").replace("X", "#").strip(),
    "@ and 0": printed("{points}", "").replace("X", "@").replace("O", "0"),
    "0 and numbers": "  0 1 2 3 4 5 6\n"
    + "\n".join(f"{at} {' '.join(row)}" for at, row in enumerate(SETTLED.split("/"))),
    "* for black": SETTLED.replace("X", "*"),
    "* for empty": SETTLED.replace(".", "*"),
    "* at star points": printed().replace("4 . . . .", "4 . . . *"),
    "- for empty": printed("{points}", "").replace(".", "-"),
    "lines between": printed("{points}", "").strip().replace(" ", "─").replace(".", "┼"),
    "dashes between": printed("{points}", "").strip().replace(" ", "-").replace(".", "+"),
    "numbered crossings": "\n".join(
        f"{7 - at} {row.replace('.', '┼')}" for at, row in enumerate(SETTLED.split("/"))
    ),
    "a list": str([list(row) for row in SETTLED.split("/")]).replace("], ", "],\n"),
    "a list of rows": str(SETTLED.split("/")),
    "a quotation": "> Settled?\n" + printed("> {points}", ""),
    "fenced": "```\n" + printed("{points}", "").strip() + "\n```",
    "titled": "Black to move\n" + printed("{points}", "").strip(),
    "blank lines between": printed("{points}", "").strip().replace("\n", "\n\n"),
}


@pytest.mark.parametrize("name", PRINTED)
def test_what_programs_print(name: str) -> None:
    """As an argument, in a file, and two in a file."""

    def read(text: str) -> str:
        return format_board(parse_board(text, "territory", 7), "territory", 7)

    text = PRINTED[name]
    assert read(text) == SETTLED
    assert [read(each) for _, each in split_boards(text.splitlines(), 7)] == [SETTLED]
    twice = f"{text}\n\n{text}".splitlines()
    assert [read(each) for _, each in split_boards(twice, 7)] == [SETTLED] * 2
    assert read("\ufeff" + text) == SETTLED


def test_a_group_is_marked_among_other_signs() -> None:
    """``B`` and ``W`` are stones of the group, whatever the others are."""
    assert capture(LADDER.replace("X", "#")) == LADDER
    black = LADDER.replace("X", "O").replace("W", "B")
    assert capture(black.replace("./.......", "./#......", 1)) == black.replace(
        "./.......", "./X......", 1
    )


def test_a_sign_that_may_be_either_is_not_guessed() -> None:
    """A star beside black stones and empty points, far from any star point."""
    with pytest.raises(DataError, match=r"'\*' at A1, .*write X or \."):
        parse_board(SETTLED[:-7] + "*......", "territory", 7)
    with pytest.raises(DataError, match="'@' in row 7"):
        parse_board(SETTLED[:-7] + "@......", "territory", 7)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from("#@*"), st.sampled_from("O0"), st.sampled_from(".+-"))
def test_any_board_in_other_signs_is_the_same(seed: int, black: str, white: str, free: str) -> None:
    """Or it is refused, where a sign may be either; it is never another board."""
    cells = np.random.default_rng(seed).choice(list("..XO"), size=(7, 7))
    text = "\n".join("".join(row) for row in cells)
    other = text.translate(str.maketrans({"X": black, "O": white, ".": free}))
    try:
        wanted = parse_board(text, "territory", 7)
    except DataError:
        return
    try:
        found = parse_board(other, "territory", 7)
    except DataError:
        assert black == "*" or free == "-"
    else:
        assert (found == wanted).all()


def test_long_lines_take_no_time() -> None:
    """Blanks and brackets without end are no row."""
    for text in (
        " " * 300_000 + "X",
        "(" * 300_000,
        ". " * 300_000,
        "#" * 300_000,
        "#*0-\n" * 2_000,
    ):
        with pytest.raises(DataError):
            parse_board(text, "territory", 7)


def test_marking_one_stone_marks_its_group() -> None:
    """All stones of the chain are in question."""
    assert capture(LADDER.replace("W..", "WO.")).split("/")[2] == ".XWW..."


def test_territory_follows_the_moves() -> None:
    """To the end of the main line, captures and passes included."""
    moves = "(;SZ[7];B[ba];W[aa];B[ab];W[];B[tt];W[ ];B[Pass](;W[gg])(;W[ff]))"
    read = format_board(parse_board(moves, "territory", 7), "territory", 7)
    assert read == ".X...../X....../......./......./......./......./......O"


@pytest.mark.parametrize(
    "text, words",
    [
        (LADDER.replace("W", "O"), ["no group is marked"]),
        (LADDER[:-3], ["row 7", "4 points"]),
        (LADDER[:-8], ["6 rows", "7x7 needs 7"]),
        (LADDER.replace("W", "Q"), ["'Q'", "row 3 column 3"]),
        (LADDER.replace("W", "1"), ["'1'", "answers only"]),
        (LADDER[:-1] + "B", ["more than one group"]),
        ("WX...../X....../" + LADDER[16:], ["A7", "no liberty"]),
        ("", ["0 rows"]),
        ("hello", ["1 row"]),
        (SGF.replace("[7]", "[19]") + ")", ["SZ[19]", "7x7"]),
        ("(;AB[aa])", ["no SZ", "7x7"]),
        ("(;SZ[9])", ["SZ[9]", "task.size=9"]),
        ("(;SZ[7:9])", ["SZ[7:9]", "7x7"]),
        ("(;SZ[])", ["SZ[]", "7x7"]),
        (";SZ[7]AB[aa]", ["begins with ;SZ[7]AB", "not with (;"]),
        ("(SZ[7]AB[aa])", ["not with (;"]),
        (SGF + "TR[ee])", ["marks E3, where no stone is"]),
        ("(;SZ[7]AB[aa:bb]AW[bb:cc])", ["a black and a white stone on B6"]),
        (SGF + "AW[cb])", ["a black and a white stone on C6"]),
        ("(;SZ[7]GM[3])", ["GM[3]"]),
        (SGF + "TR[cb])", ["black is to move", "other side"]),
        (SGF + "AB[zz])", ["AB[zz]", "7x7"]),
        (SGF + "AB[])", ["AB[]", "no point"]),
        ("(;SZ[7]AB[aa]AW[cc][ee])", ["marks no stone"]),
        ("(;SZ[7]AB[ab][fg]AW[aa][gg]PL[B])", ["marks no stone", "2 groups"]),
        (SGF + "PL[green])", ["PL[green]"]),
        (SGF, ["no end"]),
        (SGF + "C[never closed)", ["no end"]),
        ("(;SZ[7]AB)", ["where a property"]),
        ("(;(", ["no end"]),
        ("(;" + "(" * 2000 + ")" * 2001, ["deep"]),
        ("(;SZ[7]C[" + "x" * (1 << 20) + "])", ["characters"]),
    ],
    ids=lambda value: str(value)[:30].replace("/", "|"),
)
def test_what_is_wrong_is_one_line(text: str, words: List[str]) -> None:
    """Which says where."""
    with pytest.raises(DataError) as caught:
        parse_board(text, "capture", 7)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_illegal_move_is_named() -> None:
    """A taken point, or suicide."""
    with pytest.raises(DataError, match=r"move 2, W\[aa\] at A7, is illegal"):
        parse_board("(;SZ[7];B[aa];W[aa])", "territory", 7)
    with pytest.raises(DataError, match=r"move 1, B\[aa:bb\], is more than one point"):
        parse_board("(;SZ[7];B[aa:bb])", "territory", 7)


def test_brackets_without_an_end_take_no_time() -> None:
    """Each character is looked at once or twice, not once for each bracket."""
    with pytest.raises(DataError, match="no end"):
        list(split_trees("(;" + "[" * 200_000))
    assert len(read_nodes("(" + ";B[aa]" * 5000 + ")")) == 5000


@settings(deadline=None, max_examples=100)
@given(st.text("();[]\\:ABWSZPLTRMG7abcg \n.XO/", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but a DataError comes of it."""
    for kind in ("capture", "territory"):
        for start in ("", "(;SZ[7]"):
            try:
                tokens = parse_board(start + text, kind, 7)
            except DataError as error:
                assert "\n" not in str(error)
            else:
                assert tokens.shape == (49,) and tokens.dtype == np.uint8
                assert (
                    not rules_of(7).without_liberty(
                        *(rules_of(7).to_bits(np.isin(tokens, each)) for each in ([2, 4], [3, 5]))
                    )
                    or kind == "territory"
                )
    try:
        list(split_boards(text.split("\n"), 7))
    except DataError as error:
        assert "\n" not in str(error)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([("capture", 7), ("territory", 6)]))
def test_writing_and_reading_are_inverse(seed: int, kind: "tuple[str, int]") -> None:
    """For puzzles, answers, and whatever else a model may predict."""
    tokens = np.random.default_rng(seed).integers(kind[1], size=49).astype(np.uint8)
    assert (read_cells(format_board(tokens, kind[0], 7), kind[0], 7) == tokens).all()


def test_files(tmp_path: Path) -> None:
    """Text, SGF and CSV are solved; a problem is named with its line."""
    solved = LADDER.replace("W..../.......", "W..../..1....")
    text = tmp_path / "a.txt"
    text.write_text("# two\n" + "\n".join(ROWS) + "\n\n" + LADDER + "\n")
    sgf = tmp_path / "b.sgf"
    sgf.write_text(SGF + ")\n" + SGF + ";B[cd])\n")
    table = tmp_path / "c.csv"
    table.write_text(f"question,answer\n{LADDER},{solved}\n{LADDER},{solved}\n")
    for path in (text, sgf, table):
        (part,) = read_boards(path, "capture", 7, 1)
        assert len(part.inputs) == 2
        assert [format_board(row, "capture", 7) for row in part.inputs] == [LADDER] * 2
        assert [format_board(row, "capture", 7) for row in part.labels] == [solved] * 2
    table.write_text(f"question,answer\n{LADDER},{LADDER}\n")
    with pytest.raises(DataError, match="c.csv:2: the answer is wrong"):
        list(read_boards(table, "capture", 7, 1))
    text.write_text("\n" + LADDER + "\n" + LADDER.replace("W", "O"))
    with pytest.raises(DataError, match="a.txt:3: no group"):
        list(read_boards(text, "capture", 7, 1))
    text.write_text("# nothing\n")
    with pytest.raises(DataError, match="a.txt: holds no board"):
        list(read_boards(text, "capture", 7, 1))


FOREIGN = {
    "latin-1": "caf\xe9",
    "shift_jis": "\u30bd\u8868]".replace("]", ""),  # its second bytes are a backslash
    "gbk": "\u4e5d\u6bb5 \u8a55",
    "cp1251": "\u0433\u043e",
}


@pytest.mark.parametrize("charset", FOREIGN)
def test_comments_may_be_in_other_encodings(charset: str, tmp_path: Path) -> None:
    """Which SGF names, or leaves to the reader; boards of text and other files are UTF-8."""
    text = SGF + f"CA[{charset}]PB[{FOREIGN[charset]}]C[{FOREIGN[charset]}])"
    path = tmp_path / "a.sgf"
    path.write_bytes(text.encode(charset))
    (part,) = read_boards(path, "capture", 7, 1)
    assert [format_board(row, "capture", 7) for row in part.inputs] == [LADDER]
    task = build_task(GoConfig("go", kind="capture"))
    (given,) = read_given(str(path), task)
    assert task.format(given.inputs) == LADDER
    path.write_bytes((LADDER + FOREIGN[charset]).encode(charset))
    for read in (
        lambda: list(read_boards(path, "capture", 7, 1)),
        lambda: read_given(str(path), task),
    ):
        with pytest.raises(DataError, match="a.sgf: is not UTF-8 text"):
            read()
