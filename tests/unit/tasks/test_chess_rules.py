"""Chess: tokens, moves and mates against python-chess, on random positions."""

import random
from typing import List, Set, Tuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.errors import DataError
from mlx_trm.tasks import Chess, ChessConfig

chess = pytest.importorskip("chess", reason="python-chess is not installed (extra chess)")

# pylint: disable=wrong-import-position
from mlx_trm.tasks.chess.answers import find_answer, is_right, read_move  # noqa: E402
from mlx_trm.tasks.chess.generator import (  # noqa: E402
    Wanted,
    generate_puzzles,
    play_game,
    vary_puzzles,
)
from mlx_trm.tasks.chess.mates import find_checks, find_mates, forces_mate  # noqa: E402
from mlx_trm.tasks.chess.positions import (  # noqa: E402
    Position,
    decode_move,
    decode_position,
    encode_move,
    encode_position,
    encode_targets,
    turn_to_white,
)
from mlx_trm.tasks.chess.tokens import (  # noqa: E402
    EMPTY,
    EN_PASSANT,
    FROM,
    OTHER_CASTLING,
    OWN_CASTLING,
    TO,
    VOCABULARY,
    has_castling,
    mirror,
    most_probable_move,
)
from mlx_trm.tasks.chess.tokens import position_key as key  # noqa: E402

SEEDS = st.integers(0, 2**32 - 1)
STYLE = st.sampled_from(("games", "endings"))


def random_board(seed: int, style: str) -> "chess.Board":
    """A position of a random game, with moves."""
    draws = random.Random(seed)
    boards = [board.copy() for board, _ in play_game(style, draws)]
    return boards[int(draws.random() * len(boards))] if boards else chess.Board()


def squares(board: "chess.Board", square: int) -> List[int]:
    """Where a piece may go, by trying every square and every promotion."""
    kinds = (None, chess.QUEEN, chess.KNIGHT)
    found = []
    # A king that takes its own rook is castling to python-chess.
    for target in chess.SquareSet(~board.occupied_co[board.turn]):
        moves = [chess.Move(square, target, kind) for kind in kinds]
        if any(board.is_legal(move) for move in moves):
            found.append(target)
    return found


@settings(deadline=None, max_examples=20)
@given(SEEDS, STYLE)
def test_positions_and_tokens_are_inverse(seed: int, style: str) -> None:
    """All that decides a move is kept: pieces, castling, en passant; the side by turning."""
    white = turn_to_white(random_board(seed, style)).board
    tokens = encode_position(Position(white))
    again = decode_position(tokens).board
    assert (encode_position(Position(again)) == tokens).all()
    assert set(again.legal_moves) == set(white.legal_moves)
    assert again.fen().split()[:4] == white.fen().split()[:4]


@settings(deadline=None, max_examples=25)
@given(SEEDS, STYLE)
def test_labels_of_moves_are_the_legal_ones(seed: int, style: str) -> None:
    """Of every piece, on the board as it is, not as it is seen: colours make no difference."""
    board = random_board(seed, style)
    for square in chess.scan_forward(board.occupied_co[board.turn]):
        inputs = encode_position(turn_to_white(board, square))
        labels, problem = find_answer(inputs, "moves")
        wanted = squares(board, square)
        wanted = wanted if board.turn else [each ^ 56 for each in wanted]
        assert problem is None and (labels == encode_targets(wanted)).all()
        assert is_right(inputs, labels, "moves")
        labels[labels.argmin()] ^= TO  # any other cell makes it wrong
        assert not is_right(inputs, labels, "moves")


@settings(deadline=None, max_examples=8)
@given(SEEDS, STYLE)
def test_every_check_and_every_mate_is_found(seed: int, style: str) -> None:
    """The quick search for checks misses none."""
    for board, moves in play_game(style, random.Random(seed)):
        checks = {move for move in moves if board.gives_check(move)}
        assert checks <= set(find_checks(board)) <= set(moves)
        mates = []
        for move in moves:
            board.push(move)
            mates += [move] if board.is_checkmate() else []
            board.pop()
        assert set(find_mates(board, moves)) == set(mates)


def test_checks_by_castling_en_passant_and_promotion() -> None:
    """Moves that change more than two squares."""
    for fen, move in (
        ("5k2/8/8/8/8/8/8/4K2R w K - 0 1", "e1g1"),
        ("8/8/8/k2pP2R/8/8/8/4K3 w - d6 0 1", "e5d6"),
        ("7k/P7/8/8/8/8/8/4K3 w - - 0 1", "a7a8q"),
        ("8/1P6/3k4/8/8/8/8/4K3 w - - 0 1", "b7b8q"),
    ):
        board = chess.Board(fen)
        assert board.gives_check(chess.Move.from_uci(move))
        assert chess.Move.from_uci(move) in set(find_checks(board)), fen


def slow_mate(board: "chess.Board", depth: int) -> bool:
    """Whether the side to move mates within so many moves, by plain search."""
    for move in list(board.legal_moves):
        board.push(move)
        won = board.is_checkmate()
        if not won and depth > 1 and board.legal_moves.count():
            won = True
            for reply in list(board.legal_moves):
                board.push(reply)
                won = won and slow_mate(board, depth - 1)
                board.pop()
                if not won:
                    break
        board.pop()
        if won:
            return True
    return False


@pytest.mark.parametrize("kind", ["mate1", "mate2"])
@pytest.mark.parametrize("style", ["games", "endings"])
def test_what_is_called_mate_is_mate(kind: str, style: str) -> None:
    """Every label mates in so many moves and not in fewer, and it alone does."""
    count = 6 if kind == "mate1" else 2
    for inputs, labels in generate_puzzles(Wanted(kind, style), count, np.random.default_rng(1)):
        board, move = decode_position(inputs).board, decode_move(labels)
        assert move is not None and board.is_valid()
        assert is_right(inputs, labels, kind)
        assert slow_mate(board, 1) == (kind == "mate1") and slow_mate(board, 2)
        others = [each for each in board.legal_moves if each != move]
        right = [is_right(inputs, encode_move(each), kind) for each in others]
        assert not any(right)
        assert (find_answer(inputs, kind)[0] == labels).all()


@pytest.mark.parametrize("kind", ["mate1", "mate2"])
def test_variants_are_mates_of_their_own(kind: str) -> None:
    """Legal, different, none that is kept out, and what their labels say mates, alone."""
    base = list(generate_puzzles(Wanted(kind, "endings"), 2, np.random.default_rng(3)))
    wanted = Wanted(kind)

    def vary(exclude: Set[bytes]) -> List[Tuple[np.ndarray, np.ndarray]]:
        return list(vary_puzzles(base, wanted, 4, np.random.default_rng(0), exclude))

    found = vary(set())
    assert [key(inputs) for inputs, _ in found] == [key(inputs) for inputs, _ in vary(set())]
    assert {key(inputs) for inputs, _ in base} < {key(inputs) for inputs, _ in found}
    assert 2 < len(found) == len({key(inputs) for inputs, _ in found}) <= 10
    for inputs, labels in found:
        board, move = decode_position(inputs).board, decode_move(labels)
        assert move is not None and board.is_valid() and is_right(inputs, labels, kind)
        assert slow_mate(board, 1) == (kind == "mate1")
        others = [each for each in board.legal_moves if each != move]
        assert not any(is_right(inputs, encode_move(each), kind) for each in others)
    first = next(
        key(inputs) for inputs, _ in found if key(inputs) not in map(key, next(zip(*base)))
    )
    assert first not in {key(inputs) for inputs, _ in vary({first})}


def test_the_most_probable_move() -> None:
    """Of all pairs of squares and every promotion, by the product of the cells' probabilities."""
    logits = np.random.default_rng(0).normal(size=(5, 64, VOCABULARY)).astype(np.float32)
    logits[0, :, FROM] = 9.0  # every square is left, says the model; one answer leaves one
    logits[1, :, EMPTY] = 50.0  # it marks nothing
    shares = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for row, tokens in zip(shares, most_probable_move(logits)):
        best, places = -np.inf, [(a, b) for a in range(64) for b in range(64) if a != b]
        for left, reached in places:
            rest = row[:, EMPTY].sum() - row[left, EMPTY] - row[reached, EMPTY]
            best = max(best, rest + row[left, FROM] + row[reached, TO:].max())
        assert row[np.arange(64), tokens].sum() == pytest.approx(best, abs=1e-3)
        assert decode_move(tokens) is not None


def test_stalemate_is_no_mate() -> None:
    """A move without a reply has to give check."""
    board = chess.Board("k7/8/8/1Q6/8/8/8/K7 w - - 0 1")
    assert not forces_mate(board, chess.Move.from_uci("b5b6"))
    assert not board.move_stack


def test_a_reply_that_escapes_is_seen() -> None:
    """Forced means after every reply."""
    board = chess.Board("6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1")
    assert is_right(
        encode_position(Position(board)), encode_move(chess.Move.from_uci("a1a8")), "mate1"
    )
    assert not forces_mate(board, chess.Move.from_uci("a1a7"))  # h6 gives the king air


@settings(deadline=None, max_examples=20)
@given(SEEDS, STYLE)
def test_mirrored_positions_keep_their_labels(seed: int, style: str) -> None:
    """Where nobody may castle, files may be mirrored."""
    board = random_board(seed, style)
    own = list(chess.scan_forward(board.occupied_co[board.turn]))
    inputs = encode_position(turn_to_white(board, own[seed % len(own)]))
    assert bool(has_castling(inputs)) == bool(board.clean_castling_rights())
    task = Chess(ChessConfig("chess"))
    symmetry = task.draw_symmetry(inputs, np.random.default_rng(seed))
    labels = find_answer(inputs, "moves")[0]
    other = symmetry.apply(inputs)
    assert (find_answer(other, "moves")[0] == symmetry.apply(labels)).all()
    assert (symmetry.undo(symmetry.apply(labels)) == labels).all()
    rows = np.stack([inputs] * 8)
    turned, answered = task.augment(rows, np.stack([labels] * 8), np.random.default_rng(0))
    if has_castling(inputs):
        assert (turned == inputs).all() and (other == inputs).all()
    else:
        assert (turned == mirror(inputs)).all(axis=1).any()
        assert key(mirror(inputs)) == key(inputs)
    for row, answer in zip(turned, answered):
        assert (find_answer(row, "moves")[0] == answer).all()


@settings(deadline=None, max_examples=12)
@given(SEEDS)
def test_mirrored_mates_are_mates(seed: int) -> None:
    """The same of moves that mate."""
    for board, moves in play_game("endings", random.Random(seed)):
        inputs = encode_position(turn_to_white(board))
        found = {tuple(encode_move(move)) for move in find_mates(decode_position(inputs).board)}
        other = decode_position(mirror(inputs)).board
        assert {tuple(mirror(np.array(each))) for each in found} == {
            tuple(encode_move(move)) for move in find_mates(other)
        }
        assert len(found) == len(find_mates(board, moves))


def test_rights_are_tokens() -> None:
    """A rook that may castle, a square for en passant, and Black's seen as White's."""
    inputs = encode_position(turn_to_white(chess.Board("r3k2r/8/8/8/8/8/8/R3K2R w Kq - 0 1")))
    assert np.flatnonzero(inputs == OWN_CASTLING).tolist() == [63]
    assert np.flatnonzero(inputs == OTHER_CASTLING).tolist() == [0]
    white = chess.Board("4k3/8/8/3pP3/8/8/8/4K3 w - d6 0 1")
    black = chess.Board("4k3/8/8/8/3Pp3/8/8/4K3 b - d3 0 1")
    assert (encode_position(Position(white)) == encode_position(turn_to_white(black))).all()
    assert (encode_position(Position(white)) == EN_PASSANT).sum() == 1
    # A pawn that nobody can take leaves no right.
    quiet = chess.Board("4k3/8/8/3p4/8/8/8/4K3 w - d6 0 1")
    assert not (encode_position(Position(quiet)) == EN_PASSANT).any()


def test_castling_is_a_move_of_the_king() -> None:
    """Two squares, and not onto the rook."""
    inputs = encode_position(Position(chess.Board("5k2/8/8/8/8/8/6PP/4K2R w K - 0 1")))
    legal = [read_move(inputs, encode_move(chess.Move.from_uci(m))) for m in ("e1g1", "e1h1")]
    assert legal[0] is not None and legal[1] is None
    labels = find_answer(encode_position(Position(decode_position(inputs).board, 4)), "moves")[0]
    assert labels[62] == TO and labels[63] != TO


def test_promotions_are_answers_of_their_own() -> None:
    """Each piece has its token; a cell that a pawn may be promoted on counts once."""
    board = chess.Board("8/P7/8/8/8/7k/8/K7 w - - 0 1")
    moves = [chess.Move.from_uci(f"a7a8{piece}") for piece in "qrbn"]
    assert [decode_move(encode_move(move)) for move in moves] == moves
    assert len({tuple(encode_move(move)) for move in moves}) == 4
    inputs = encode_position(Position(board, chess.A7))
    assert np.flatnonzero(find_answer(inputs, "moves")[0] == TO).tolist() == [0]


@pytest.mark.parametrize(
    "marks", [{}, {0: 24}, {0: 24, 1: 25, 2: 25}, {0: 24, 1: 25, 5: 0}, {0: 24, 1: 25, 5: 7}]
)
def test_an_answer_that_is_no_move(marks: dict) -> None:
    """It has to leave one cell and reach one, and hold nothing else."""
    tokens = np.ones(64, np.uint8)
    for cell, token in marks.items():
        tokens[cell] = token
    assert decode_move(tokens) is None
    inputs = encode_position(Position(chess.Board()))
    assert not is_right(inputs, tokens, "mate1")


@pytest.mark.parametrize("cells", [{3: 24}, {3: 17, 4: 18}, {3: 16, 4: 16}, {3: 0}])
def test_tokens_of_no_position(cells: dict) -> None:
    """What is an answer's, marked twice, or no token of a position."""
    tokens = np.ones(64, np.uint8)
    for cell, token in cells.items():
        tokens[cell] = token
    with pytest.raises(DataError):
        decode_position(tokens)
    assert not is_right(tokens, np.ones(64, np.uint8), "moves")
