"""The square that a FEN is followed by, in whatever form the FEN is written."""

import pytest

from mlx_trm.errors import DataError
from mlx_trm.tasks import Chess, ChessConfig

chess = pytest.importorskip("chess", reason="python-chess is not installed (extra chess)")

MOVES = Chess(ChessConfig("chess", kind="moves"))
MATE = Chess(ChessConfig("chess", kind="mate1"))

SQUARE = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1 g1"


@pytest.mark.parametrize(
    "text",
    [
        'FEN id "x"; g1',
        'FEN g1 id "x";',
        'FEN bm e4; c0 "e5 d4"; g1',
        "FEN, g1",
        "FEN: g1",
        '"FEN" g1',
        '[FEN "FEN"] g1',
        '[FEN "FEN"]\ng1',
        "FEN\ng1",
        "FEN g1.",
        "ROWS\nw KQkq -\ng1",
        "ROWS\nw KQkq -\n\nWhite to move\ng1",
        "SHORT w KQkq g1",
    ],
)
def test_the_square_stands_behind_whatever_form(text: str) -> None:
    """Behind the operations of an EPD or before them, behind quotes, on a line of its own."""
    fen = SQUARE.rpartition(" ")[0]
    text = text.replace("ROWS", str(chess.Board(fen))).replace("SHORT", fen.split()[0])
    for form in (fen, " ".join(fen.split()[:4])):
        written = text.replace('"FEN"', f'"{form}"').replace('FEN "', 'fen "')
        written = written.replace("FEN", form)
        assert MOVES.parse(written).tolist() == MOVES.parse(SQUARE).tolist()
        ((_, found),) = MOVES.split_puzzles(written.splitlines())
        assert MOVES.parse(found).tolist() == MOVES.parse(SQUARE).tolist()


def test_a_third_field_is_the_passed_square_where_it_is_empty() -> None:
    """And the piece that is asked about where one stands there."""
    fen = "4k3/8/8/3Pp3/8/8/8/4K3 w -"
    assert MATE.parse(f"{fen} e6").tolist() == MATE.parse(f"{fen} e6 0 1").tolist()
    assert MOVES.parse(f"{fen} d5").tolist() == MOVES.parse(f"{fen} - 0 1 d5").tolist()
    with pytest.raises(DataError, match="is missing"):
        MOVES.parse(f"{fen} e6")
