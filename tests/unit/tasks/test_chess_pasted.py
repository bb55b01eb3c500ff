"""Boards as python-chess, engines, web pages and this program print them, read as a FEN is."""

import time
from typing import Any, Dict, List

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.errors import DataError
from mlx_trm.tasks import Chess, ChessConfig

chess = pytest.importorskip("chess", reason="python-chess is not installed (extra chess)")

# pylint: disable-next=wrong-import-position
from mlx_trm.tasks.chess.positions import encode_move  # noqa: E402

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
    return {**found, **grids(board, side), **quoted(board)}


def grids(board: Any, side: str) -> Dict[str, str]:
    """As lists, tables and pages write it."""
    rows = rows_of(board)
    blank = [[cell.replace(".", "") for cell in row] for row in rows]
    named = [["--" if c == "." else "bw"[c.isupper()] + c.upper() for c in row] for row in rows]
    squares = [
        [cell if cell != "." else "⬜⬛"[(at + place) % 2] for place, cell in enumerate(row)]
        for at, row in enumerate(rows)
    ]
    found = {
        "fence": ["```", *rows, "```"],
        "reply": [f"> {' '.join(row)}" for row in rows],
        "ranks in brackets": [f"{8 - at}) {' '.join(row)}" for at, row in enumerate(rows)],
        "ranks with colons": [f"{8 - at}: {' '.join(row)}" for at, row in enumerate(rows)],
        "table": ["|a|b|c|d|e|f|g|h|", "|---" * 8 + "|", *("|" + "|".join(r) + "|" for r in blank)],
        "table with ranks": [f"|{8 - at}|" + "|".join(row) + "|" for at, row in enumerate(blank)],
        "commas": [",".join(row) for row in blank],
        "tabs": ["\t".join(row) for row in blank],
        "list": ["[", *(f"  {list(row)}," for row in rows), "]"],
        "array": str(np.array([list(row) for row in rows])).splitlines(),
        "strings": ["[", *(f"  {row!r}," for row in rows), "]"],
        "zeros": [" ".join(row).replace(".", "0") for row in rows],
        "colours and kinds": [" ".join(row) for row in named],
        "coloured squares": [" ".join(row) for row in squares],
        "underlined": ["_" * 17, *(f"8 |{' '.join(row)}|"[2:] for row in rows), "-" * 17],
    }
    return {name: "\n".join(lines) + side for name, lines in found.items()}


def quoted(board: Any) -> Dict[str, str]:
    """Its FEN within something else, or with something behind it, and the side in words."""
    fen = board.fen()
    name, other = ("White", "Black") if board.turn else ("Black", "White")
    placement = fen.split()[0]
    found = {text: text.replace("FEN", fen) for text in QUOTES}
    found["address"] = f"https://lichess.org/analysis/standard/{fen.replace(' ', '_')}?color=white"
    found["editor"] = f"see https://lichess.org/editor/{fen.replace(' ', '_')}"
    found["query"] = f"https://example.org/a?fen={fen.replace(' ', '%20')}&flip=no"
    found["underscores"] = fen.replace(" ", "_")
    found["dashes"] = fen.replace("-", "–")
    for said in SIDES:
        said = said.replace("W", name).replace("L", other)
        found[f"{said} above"] = f"{said}\n{board}"
        found[f"{said} below"] = f"{board}\n\n{said}"
        found[f"{said} above a frame"] = f"{said}\n{stockfish(board)}"
    found["side behind"] = f"{placement} {name}"
    found["side in words"] = f"{placement} {name} to move"
    found["side in front"] = f"{name} to move: {placement}"
    found["side on a line"] = f"{name}'s move\n{placement}"
    return found


# What stands around a FEN, and behind it: EPD's operations, counts of positions.
QUOTES = ['"FEN"', "'FEN'", "`FEN`", "FEN.", "FEN,", "FEN;", "| FEN |", "fen=FEN", "Board('FEN')"]
QUOTES += ['chess.Board("FEN")', "\ufeffFEN", '{"fen": "FEN", "x": 1}', 'FEN id "a b";']
QUOTES += ["FEN ;D1 20 ;D2 400", "FEN bm Qh5", 'FEN bm Qh5; c0 "x; y";', "FEN noop;"]
SIDES = ["W to play and mate in one", "Turn: W", "side to move: W", "It is W's move.", "W"]
SIDES += ["Mate in one. W to move. L is lost."]


@settings(deadline=None, max_examples=12)
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


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_a_slip_in_a_board_gives_no_other_one(seed: int) -> None:
    """A character is lost, where no blank stands for a square, or rows with ranks are exchanged."""
    draws = np.random.default_rng(seed)
    board = chess.Board("r1bqkb1r/pppp1ppp/2n2n2/4p2Q/2B1P3/8/PPPP1PPP/RNB1K1NR w - - 0 1")
    want = MATE.parse(board.fen()).tolist()
    every = {**forms(board), "own": MATE.render(np.array(want), np.array(want))}
    for name in LOSSLESS:
        text = every[name]
        place = int(draws.choice([at for at, char in enumerate(text) if not char.isspace()]))
        slips = [text[:place] + text[place + 1 :]]
        rows = [at for at, line in enumerate(text.splitlines()) if set(line) & set("12345678")]
        if len(rows) == 8:
            lines = text.splitlines()
            one, two = draws.choice(rows, 2, replace=False)
            lines[one], lines[two] = lines[two], lines[one]
            slips.append("\n".join(lines))
        for slip in slips:
            try:
                assert MATE.parse(slip).tolist() == want, (name, slip)
            except DataError:
                pass


LOSSLESS = ["print", "pieces", "framed pieces", "black below", "coordinates", "chess.js", "dashes"]
LOSSLESS += ["fence", "reply", "ranks in brackets", "ranks with colons", "list", "array", "strings"]
LOSSLESS += ["zeros", "colours and kinds", "coloured squares", "own"]


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


def test_a_drawn_promotion_hides_what_stood_there() -> None:
    """So it is refused, not read as a new piece; other answers hide nothing."""
    inputs = MATE.parse("1n5k/P6p/8/8/8/8/8/K7")
    for move, hidden in ((chess.Move.from_uci("a7b8q"), True), (chess.Move(48, 55), False)):
        drawn = MATE.render(encode_move(move), inputs)
        if not hidden:
            assert MATE.parse(drawn).tolist() == inputs.tolist()
            continue
        with pytest.raises(DataError, match="row 1 .*promotes"):
            MATE.parse(drawn)


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
        ("8/8/8/8/8/8/8/8/8 w", "8 rows"),
        ("FEN: 8/8/8/8/8/8/k7/K7\nFEN: 8/8/8/8/8/8/7k/K7", "2 FENs"),
        (f"White to move\n{chess.Board()}\nBlack to move", "both sides"),
        (f"{chess.Board().fen()} e2;", "not what follows"),
        (f"{chess.Board().fen()} h", "not what follows"),
        (f"x,{chess.Board().fen()},e2e4", "not what follows"),
        ("https://lichess.org/training/00008", "squares"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, said: str) -> None:
    """Which names what is wrong."""
    with pytest.raises(DataError, match=said) as caught:
        MATE.parse(text)
    assert "\n" not in str(caught.value)


PIECES_OF_TEXT = [
    *(
        "6k1/5ppp/8/8/8/8/8/3RK3",
        " w ",
        " b ",
        "KQ",
        " - ",
        " 0 1",
        " e1",
        "_",
        "%20",
        ";",
        "\n",
        '"',
    ),
    *("http://x/", "?fen=", "8/", "......k.\n", "|r| | | |k| | |R|\n", "bR -- ", "White to move\n"),
    *(
        "turn: b\n",
        "+---+\n",
        "┌────┐\n",
        "└────┘\n",
        "> ",
        "8) ",
        "1. e4",
        "#",
        " bm Rd8#;",
        "[",
        ",",
    ),
    *("6k1/p4ppp/8/8/8/8/8/3RK3 b - - 0 1,a7a6 d1d8", "x,", "\t", "['r', '.']", "0", "♔", "\ufeff"),
]


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.text('rnbqkpPQK12345678./ w-|+\n♔♟·:[]"FENfen┌─┐│└┘abgh#;_,(){}', max_size=120),
        st.lists(st.sampled_from(PIECES_OF_TEXT), max_size=14).map("".join),
    )
)
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but a DataError of one line comes of it."""
    for task in (MATE, MOVES):
        try:
            found = [each for _, each in task.split_puzzles(text.split("\n"))]
        except DataError as error:
            assert "\n" not in str(error)
            found = []
        for each in [text, *found]:
            try:
                assert task.parse(each).shape == (64,)
            except DataError as error:
                assert "\n" not in str(error)


def test_captions_of_several_boards() -> None:
    """Each board has the side that is said above it, or else below it, as the first one has."""
    white = chess.Board("6k1/5ppp/8/8/8/8/8/3RK3 w - - 0 1")
    black = white.mirror()
    want = [MATE.parse(board.fen()).tolist() for board in (white, black)]
    for draw in (str, stockfish):
        for text in (
            f"White to move\n{draw(white)}\n\nBlack to move\n{draw(black)}\n",
            f"{draw(white)}\n\nWhite to move\n\n{draw(black)}\n\nBlack to move\n",
        ):
            found = [MATE.parse(each).tolist() for _, each in MATE.split_puzzles(text.split("\n"))]
            assert found == want, text


def test_a_board_directly_beside_its_fen_is_one_position() -> None:
    """As a script prints both; the FEN tells more. Another position, or the same again, is two."""
    board = chess.Board("3rk3/8/8/8/8/8/5PPP/6K1 b - - 0 1")
    other = chess.Board("6k1/5ppp/8/8/8/8/8/3RK3 w - - 0 1")
    for text in (
        f"{board}\n{board.fen()}",
        f"{board.fen()}\n{board}",
        f"{board.unicode()}\n{board.fen()}",
    ):
        found = list(MATE.split_puzzles(f"{text}\n\n{other}\n{other.fen()}".splitlines()))
        assert [each for _, each in found] == [board.fen(), other.fen()]
        assert [number for number, _ in found] == [1, 11]
    for text in (f"{board}\n{other.fen()}", f"{board.fen()}\n{board.fen()}", f"{board}\n{board}"):
        assert len(list(MATE.split_puzzles(text.splitlines()))) == 2


@pytest.mark.parametrize(
    "part", [" ", "1 ", "| ", "|", "8/", "; ", "white ", "> ", "a1 ", "_", ". "]
)
def test_long_lines_take_no_time(part: str) -> None:
    """Nothing is looked for again at each place of a line: a quadratic search takes minutes."""
    for text in (part * 30_000, f"8/8/8/8/8/8/8/8 w - - {part * 30_000}x"):
        begun = time.process_time()
        for each in [text, *(found for _, found in MATE.split_puzzles([text]))]:
            with pytest.raises(DataError):
                MATE.parse(each)
        assert time.process_time() - begun < 3


def test_a_comment_is_no_puzzle_and_a_slip_is_told() -> None:
    """Where programs name FENs, too."""
    lines = ["# old: 8/8/8/8/8/8/k7/K7 w - - 0 1", "1: 6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1 # good"]
    ((number, text),) = MATE.split_puzzles(lines)
    assert number == 2 and MATE.parse(text).any()
    lines.append("2: 6k1/5ppp/8/8/8x/8/8/R3K3 w - - 0 1")
    _, (number, text) = MATE.split_puzzles(lines)
    assert number == 3
    with pytest.raises(DataError, match="cannot be read|squares"):
        MATE.parse(text)
