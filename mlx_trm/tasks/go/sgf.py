"""SGF, the files in which Go players keep games and problems, read as far as a puzzle needs it.

Of a game tree the main line is read, which is the first variation everywhere: set-up stones, the
side to move, marks, and moves. Nothing recurses, and everything is bounded.
"""

import codecs
import re
from typing import Dict, Iterator, List, NamedTuple, NoReturn, Sequence, Tuple

from mlx_trm.errors import DataError, shown
from mlx_trm.tasks.go.positions import Position, point_name
from mlx_trm.tasks.go.rules import SIZES, Rules, count_points

# Characters of a game tree, and variations within variations. The longest game of a 19x19 board
# with all that a commentator says of it has less.
_MOST_CHARS = 1 << 20
_MOST_DEPTH = 1000
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Properties by which people mark stones: triangle, square, circle, cross, selected; FF[1] marks.
_MARKS = ("TR", "SQ", "CR", "MA", "SL", "M")
# Encodings in which a byte of a letter may look like a bracket; of all others only ASCII counts.
_CHARSETS = ("shift_jis", "cp932", "gb2312", "gbk", "gb18030", "big5", "euc_jp", "euc_kr", "cp949")
_CHARSET = re.compile(rb"CA\s*\[\s*([\w-]{1,20})\s*\]")
_PASSES = ("", "tt", "pass")
# A value ends at the first bracket without a backslash before it.
_VALUE = re.compile(r"\s*\[((?:[^\]\\]|\\.)*)\]", re.DOTALL)
# Parentheses and whole values; one without an end takes all that is left, and is read only once.
_BRACKETS = re.compile(r"[()]|\[(?:[^\]\\]|\\.)*(?:\]|\Z)", re.DOTALL)
_TREE = re.compile(r"\(\s*;")
_PROPERTY = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*")
# What a tree without its beginning begins with.
_HEADLESS = re.compile(r"[(;]?(?:GM|FF|SZ|CA|AP|GN|AB|AW|PL|C)\s*\[")
_SIZE = re.compile(r"0*(\d{1,3})(?:\s*[:x]\s*0*(\d{1,3}))?")

Node = Dict[str, List[str]]


class Board(NamedTuple):
    """Where a main line has led.

    Attributes:
        black: black stones.
        white: white stones.
        marks: points that it marks.
        to_move: ``B`` or ``W``; empty where the file does not say it.
    """

    black: int
    white: int
    marks: int
    to_move: str


def is_sgf(text: str) -> bool:
    """Say whether a text is SGF rather than a board; other text may stand before it."""
    return _TREE.search(text) is not None or _HEADLESS.match(text.lstrip()) is not None


def decode_sgf(text: str) -> str:
    """Give SGF whose comments and names are in another encoding than UTF-8.

    Args:
        text: decoded as UTF-8; a surrogate stands for each byte that is none, as Python's
            ``surrogateescape`` has it.

    Raises:
        DataError: if it has such bytes and is no SGF.
    """
    raw = text.encode("utf-8", "surrogateescape")
    if raw.isascii() or not any("\udc80" <= char <= "\udcff" for char in text):
        return text
    if not is_sgf(text):
        raise DataError("is not UTF-8 text; name a file of puzzles")
    said = _CHARSET.search(raw)
    try:
        name = codecs.lookup(said[1].decode()).name if said else ""
        return raw.decode(name if name in _CHARSETS else "latin-1")
    except (LookupError, UnicodeError):
        return raw.decode("latin-1")


def split_trees(text: str) -> Iterator[Tuple[int, str]]:
    """Find the game trees in a text.

    Returns:
        Pairs of the number of a tree's first line, from 1, and its text.

    Raises:
        DataError: if a tree has no end, or has too much in it.
    """
    at, line = 0, 1
    while True:
        begin = _TREE.search(text, at)
        if begin is None:
            if at == 0:
                _refuse(f"begins with {shown(text.strip()[:12])}, not with (; as a game tree does")
            return
        start = begin.start()
        line += text.count("\n", at, start)
        depth, place = 0, start
        for match in _BRACKETS.finditer(text, start):
            depth += {"(": 1, ")": -1}.get(match.group(), 0)
            place = match.end()
            if depth > _MOST_DEPTH:
                _refuse(f"nests variations more than {_MOST_DEPTH} deep")
            if depth == 0 or place - start > _MOST_CHARS:
                break
        if place - start > _MOST_CHARS:
            _refuse(f"has a game tree of more than {_MOST_CHARS:,} characters")
        if depth:
            _refuse(f"has a game tree, from line {line} on, that has no end: a ) is missing")
        yield line, text[start:place]
        line += text.count("\n", start, place)
        at = place


def read_nodes(text: str) -> List[Node]:
    """Read the nodes of a tree's main line: property names with their values.

    Raises:
        DataError: if it is malformed.
    """
    _, tree = next(split_trees(text), (0, ""))
    nodes: List[Node] = []
    place = 0
    while place < len(tree):
        char = tree[place]
        if char == ")":  # the main line's end
            break
        if char == ";":
            nodes.append({})
            place += 1
        elif char == "(" or char.isspace():
            place += 1
        else:
            match = _PROPERTY.match(tree, place)
            value = None if match is None else _VALUE.match(tree, match.end())
            if match is None or value is None or not nodes:
                there = shown(tree[place : place + 20])
                _refuse(f"has {there} where a property such as AB[cc] should be")
            # FF[3] may write a name in full, AddBlack; some write small letters only.
            name = re.sub("[a-z]", "", match.group(1)) or match.group(1).upper()
            values = nodes[-1].setdefault(name, [])
            while value is not None:
                values.append(value.group(1))
                place = value.end()
                value = _VALUE.match(tree, place)
    if not nodes:
        _refuse("holds no node, which begins with ;")
    return nodes


def read_board(text: str, rules: Rules, play: bool) -> Board:
    """Follow the main line of a game tree.

    Args:
        text: SGF; of several trees the first.
        rules: of the board that is wanted.
        play: play its moves to the end; otherwise stop before the first one.

    Returns:
        The board that it leads to.

    Raises:
        DataError: if it is malformed, of another game or size, or a move is illegal.
    """
    nodes = read_nodes(text)
    _check_root(nodes[0], rules.size)
    black = white = marks = 0
    to_move, moves = "", 0
    for node in nodes:
        black, white = _set_up(node, black, white, rules.size)
        if "PL" in node:
            to_move = _color(node["PL"][-1])
        for name in _MARKS:
            marks |= _points(node.get(name, ()), name, rules.size)
        for name in ("B", "W"):
            for value in node.get(name, ()):
                if not play:  # a mark on the move itself only shows where it is
                    own = 0 if _is_pass(value) else _points([value], name, rules.size)
                    return Board(black, white, marks & ~own, to_move or name)
                moves += 1
                to_move = "W" if name == "B" else "B"
                if _is_pass(value):
                    continue
                point = _points([value], name, rules.size)
                if count_points(point) > 1:
                    _refuse(f"move {moves}, {name}[{shown(value)}], is more than one point")
                own, other = (black, white) if name == "B" else (white, black)
                played = rules.play(own, other, point)
                if played is None:
                    place = point_name(point, rules.size)
                    _refuse(f"move {moves}, {name}[{shown(value)}] at {place}, is illegal there")
                black, white = played[:2] if name == "B" else played[1::-1]
    return Board(black, white, marks, to_move)


def read_problem(text: str, rules: Rules) -> Position:
    """Read a capture problem: its set-up, and which group it is about.

    The group is that of the stones it marks (TR, SQ, CR, MA or SL). Where it marks none, it is the
    only group of at most two liberties of the side that is not to move.

    Raises:
        DataError: if it is malformed, or does not tell the group.
    """
    black, white, marks, to_move = read_board(text, rules, play=False)
    marked = marks & (black | white)
    if marks and not marked:
        _refuse(f"marks {point_name(marks, rules.size)}, where no stone is; mark a stone's point")
    if not marked and to_move:
        stones = white if to_move == "B" else black
        empty = rules.full & ~(black | white)
        weak = [c for c in rules.chains(stones) if 1 <= count_points(rules.around(c) & empty) <= 2]
        if len(weak) != 1:
            _refuse(
                f"marks no stone, and {len(weak)} groups of the other side have at most two "
                "liberties; mark the group to capture, such as TR[cc]"
            )
        marked = weak[0]
    if not marked:
        _refuse("marks no stone; mark the group to capture, such as TR[cc]")
    own = black if to_move == "B" else white
    if to_move and marked & own:
        _refuse(
            f"{'black' if to_move == 'B' else 'white'} is to move and has the marked stone at "
            f"{point_name(marked & own, rules.size)}; mark a group of the other side"
        )
    return Position(black, white, marked)


def _check_root(root: Node, size: int) -> None:
    """Refuse another game, or another size."""
    if root.get("GM", ["1"])[-1].strip() not in ("", "1"):
        _refuse(f"GM[{shown(root['GM'][-1])}] is another game; Go is GM[1]")
    given = root.get("SZ", ["19"])[-1].strip()
    found = _SIZE.fullmatch(given)
    sides = set() if found is None else {int(side) for side in found.groups() if side}
    if sides != {size}:
        said = f"SZ[{shown(given)}]" if "SZ" in root else "no SZ, which means 19"
        mend = f"; write SZ[{size}] if that is meant" if "SZ" not in root else ""
        if sides <= set(SIZES) and len(sides) == 1:
            mend = f"; take a run with task.size={sides.pop()}"
        _refuse(f"has {said}; this task plays on {size}x{size}{mend}")


def _set_up(node: Node, black: int, white: int, size: int) -> Tuple[int, int]:
    """Add and take off the stones that a node names, in its order; give black's and white's.

    A point that is named by itself counts more than a rectangle around it.
    """
    names = [name for name in node if name in ("AB", "AW", "AE")]
    for alone in (False, True):
        parts = {name: [v for v in node[name] if (":" not in v) == alone] for name in names}
        added = {name: _points(values, name, size) for name, values in parts.items()}
        both = added.get("AB", 0) & added.get("AW", 0)
        if both:
            _refuse(f"puts a black and a white stone on {point_name(both, size)}; take one out")
        for name, points in added.items():
            black = black | points if name == "AB" else black & ~points
            white = white | points if name == "AW" else white & ~points
    return black, white


def _points(values: Sequence[str], name: str, size: int) -> int:
    """Read points, and rectangles of points with a colon between two corners."""
    found = 0
    for value in values:
        # Capitals are points beyond the 26th, of which no board here has any.
        corners = [part.strip().lower() for part in value.split(":")]
        known = _LETTERS[:size]
        if len(corners) > 2 or not all(
            len(part) == 2 and part[0] in known and part[1] in known for part in corners
        ):
            _refuse(
                f"{name}[{shown(value)}] is no point of a {size}x{size} board; a point is two "
                f"letters from a to {known[-1]}, such as {name}[ac]"
            )
        columns, rows = zip(*((known.index(part[0]), known.index(part[1])) for part in corners))
        for row in range(min(rows), max(rows) + 1):
            for column in range(min(columns), max(columns) + 1):
                found |= 1 << (row * size + column)
    return found


def _is_pass(value: str) -> bool:
    return value.strip().lower() in _PASSES


def _color(value: str) -> str:
    color = value.strip().upper()[:1]
    color = {"1": "B", "2": "W"}.get(color, color)  # as some programs write it
    if color not in ("B", "W"):
        _refuse(f"PL[{shown(value)}] is no colour; write PL[B] or PL[W]")
    return color


def _refuse(problem: str) -> NoReturn:
    raise DataError(f"the SGF {problem}")
