"""Boards as python-chess, engines, web pages and this program print them, read as a FEN is."""

from typing import Any, Dict, List

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.errors import DataError
from mlx_trm.tasks import Chess, ChessConfig

chess = pytest.importorskip("chess", reason="python-chess is not installed (extra chess)")

MOVES = Chess(ChessConfig("chess", kind="moves"))
MATE = Chess(ChessConfig("chess", kind="mate1"))


def rows_of(board: Any) -> List[str]:
    """Eight rows of letters and points."""
    return str(board).replace(" ", "").splitlines()


def stockfish(board: Any) -> str:
    """As an engine draws it: blanks are empty squares, ranks stand on the right."""
    line = "\n +" + "---+" * 8 + "\n"
    rows = (" | ".join(row.replace(".", " ")) for row in rows_of(board))
    drawn = line.join(f" | {row} | {8 - number}" for number, row in enumerate(rows))
    return f"{line}{drawn}{line}   a   b   c   d   e   f   g   h\n"


def javascript(board: Any) -> str:
    """As chess.js draws it."""
    line = "   +------------------------+"
    rows = [f" {8 - at} | {'  '.join(row)} |" for at, row in enumerate(rows_of(board))]
    return "\n".join([line, *rows, line, "     a  b  c  d  e  f  g  h"])


def forms(board: Any) -> Dict[str, str]:
    """A position in many forms, none of which tells more than the pieces and the side."""
    files = "  a b c d e f g h"
    side = "" if board.turn else "\nb"
    spaced = [" ".join(row) for row in rows_of(board)]
    ranked = [f"{8 - at} {row} {8 - at}" for at, row in enumerate(spaced)]
    found = {
        "print": str(board) + side,
        "pieces": board.unicode() + side,
        "framed pieces": board.unicode(borders=True) + side,
        "black below": board.unicode(borders=True, orientation=chess.BLACK) + side,
        "emoji": board.unicode().replace("♟", "♟\ufe0f") + side,
        "coordinates": "\n".join([files, *ranked, files]) + side,
        "engine": stockfish(board) + side,
        "chess.js": javascript(board) + side,
        "slashes": "/\n".join(rows_of(board)) + "\n" + ("w" if board.turn else "b"),
        "dashes": "\n".join(row.replace(".", "-") for row in spaced) + side,
        "in words": f"{'White' if board.turn else 'Black'} to move.\n{board}",
        "FEN named": f"{stockfish(board)}\nFen: {board.fen()}\nKey: 8F87\nCheckers:\n",
        "UCI": f"position fen {board.fen()}",
        "PGN": f'[Event "?"]\n[FEN "{board.fen()}"]\n\n1. Qxf7# *\n',
        "EPD": board.epd(id="a#b", bm=list(board.legal_moves)[:1]),
        "no counters": " ".join(board.fen().split()[:4]),
    }
    return found


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_same_position_in_many_forms(seed: int) -> None:
    """As an argument and as a file; a random position of either side, without rights."""
    rng = np.random.default_rng(seed)
    board = chess.Board()
    for _ in range(rng.integers(1, 60)):
        moves = list(board.legal_moves)
        if not moves:
            break
        board.push(moves[rng.integers(len(moves))])
    board.castling_rights, board.ep_square = 0, None
    if not any(board.legal_moves):
        return
    want = MATE.parse(board.fen()).tolist()
    for name, text in forms(board).items():
        assert MATE.parse(text).tolist() == want, name
        ((_, found),) = MATE.split_puzzles(text.splitlines())
        assert MATE.parse(found).tolist() == want, name


def test_what_this_program_drew_is_read() -> None:
    """A drawing alone, the marks of an answer or not; what ``data show`` prints has the rights."""
    fen = "r3k3/8/8/8/8/8/6q1/R3K2R w KQq - 0 1"
    tokens = MOVES.parse(f"{fen} e1")
    answer = MOVES.answers(tokens[None])[0][0]
    plain = MOVES.parse(f"{fen.split()[0]} e1").tolist()
    for drawn in (
        MOVES.render(tokens, tokens),
        MOVES.render(answer, tokens, color=True),
        MOVES.render_step(answer, tokens, tokens, tokens * 0),
    ):
        assert MOVES.parse(drawn).tolist() == plain
        said = f"step 1: nothing\n{drawn}\nwrong\n\n" * 2
        found = [text for _, text in MOVES.split_puzzles(said.splitlines())]
        assert [MOVES.parse(text).tolist() for text in found] == [plain] * 2
    shown = f"chess test puzzle 0\n{MOVES.render(tokens, tokens)}\n{fen} e1\n"
    ((number, text),) = MOVES.split_puzzles(shown.splitlines())
    assert MOVES.parse(text).tolist() == tokens.tolist() and number == 13


def test_several_in_a_file() -> None:
    """Rows, FENs and comments between them, each with its line; a mating move is no comment."""
    board = chess.Board("6k1/5ppp/8/8/8/8/8/3RK3 w - - 0 1")
    lines = [
        *str(board).splitlines(),
        *board.unicode(borders=True).splitlines(),
        "# a comment",
        board.fen() + " # another",
        board.epd() + " bm Rd8#;",
        *rows_of(board),
        "b - - 0 1",
    ]
    found = list(MATE.split_puzzles(lines))
    assert [number for number, _ in found] == [1, 10, 28, 29, 30]
    tokens = [MATE.parse(text).tolist() for _, text in found]
    assert tokens[:4] == [tokens[0]] * 4 and tokens[4] != tokens[0]


@pytest.mark.parametrize(
    "text, said",
    [
        ('[Event "x"]\n\n1. e4 e5 *', "game in PGN"),
        ("1. e4 e5 2. Nf3", "game in PGN"),
        (str(chess.Board()).replace("q", "x"), "and then 'x'"),
        (javascript(chess.Board()).replace("q", "x"), "row 1 of the board"),
        (str(chess.Board())[:-16], "56 squares"),
        ("\n".join([str(chess.Board())] * 2), "not what follows"),
        ("", "0 squares"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        MATE.parse(text)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(st.text('rnbqkpPQK12345678./ w-|+\n♔♟·:[]"FENfen┌─┐│└┘abgh#;', max_size=120))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but a DataError of one line comes of it."""
    for each in [text, *(found for _, found in MOVES.split_puzzles(text.split("\n")))]:
        for task in (MATE, MOVES):
            try:
                assert task.parse(each).shape == (64,)
            except DataError as error:
                assert "\n" not in str(error)
