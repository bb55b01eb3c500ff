"""FENs and EPDs as people paste them: quoted, in tags and addresses; and whose move it is."""

import re
from typing import List, Optional
from urllib.parse import unquote

from mlx_trm.tasks.pasted import strip_colors

PIECES = "pnbrqkPNBRQK"
_GROUP = f"[{PIECES}1-8]{{1,8}}"
_BOARD = rf"(?:{_GROUP}/){{7}}{_GROUP}"
# A FEN's first field; in front of it may stand what a program calls it, or what it is quoted by.
_FEN = re.compile(rf"(?<![^\s:=\"'`(>{{\[|]){_BOARD}(?=[\s\"'`\]),;:.}}|_]|$)")
# Most of a FEN's rows, perhaps with a slip in them.
_NEAR, _NEAR_ROWS = re.compile(f"[{PIECES}\\d]{{1,10}}"), 5
_CLOSERS = dict(zip("\"'`([{|", "\"'`)]}|"))
_ENDS = "\"'`)]}>|,;: \t"
_ADDRESS = re.compile(r"\bhttps?://\S+")
_IN_ADDRESS = re.compile(rf"[/=]({_BOARD}(?:[\s_+][^?&#/]*)?)(?:[?&#]|$)")
_SQUARE = re.compile(r"[a-h][1-8]")
_BEHIND = re.compile(r"\W*([a-h][1-8])\W*")
# What EPD has behind three fields, and others behind five: operations, each with a semicolon at its
# end, or counts of positions, each behind one. Those that books name are known without it.
_OPERATIONS = re.compile(
    r"(?P<fields>\s*[wb]\s+\S+\s+[^\s;]+(?:\s+\d{1,5}){0,2}(?:\s+[a-h][1-8])?)"
    r"(?:\s*;.*|\s+[A-Za-z_]\w*(?:\s[^;]*)?;.*"
    r"|\s+(?:[ab]m|id|c\d|v\d|ac[dns]|[cd][em]|eco|pv|sv|[prs]m|hmvc|fmvn|D\d+)\s.*)"
)
_LAST_SQUARE = re.compile(r";\s*([a-h][1-8])\W*$")
_SIDE = re.compile(
    r"\b(white|black)(?:['’]s)?\s+(?:is\s+)?(?:to\s+)?(?:move|play|turn)s?\b"
    r"|\b(?:turn|side|to\s+move|to\s+play|next|stm)\W+(white|black|w|b)\b"
    r"|^\s*\(?(white|black)[.:)]?(?:\s+(?:[KQkq]{1,4}|-))?\s*$",
    re.I,
)
# Marks of byte order and of no width, and what stands for a space or a dash.
_PLAIN = str.maketrans(
    {**dict.fromkeys("\ufeff\u200b\u200c\u200d\u2060"), "\u00a0": " ", **dict.fromkeys("–—−", "-")}
)


def plain_text(text: str) -> str:
    """Take out of a text what does not show: colours, marks of byte order; dashes are ``-``."""
    return strip_colors(text).translate(_PLAIN)


def find_fen(line: str) -> Optional[str]:
    """Find a FEN in a line, with what follows it; None: there is none.

    Quotes and brackets around it, as a tag of PGN has, end it, but for the square of a piece behind
    them. Operations of an EPD are left out.
    """
    line = _ADDRESS.sub(_open_address, line)
    found = _FEN.search(line)
    if found is None:
        return None
    text, behind = line[found.end() :], ""
    closer = _CLOSERS.get(line[: found.start()][-1:], "\n")
    if closer in text:
        text, behind = text.split(closer, 1)
    square = _BEHIND.fullmatch(behind)
    fields = plain_fields(text) or [*filter(None, [read_side(line[: found.start()])])]
    return " ".join([found[0], *fields, *([square[1]] if square else [])])


def _open_address(address: "re.Match[str]") -> str:
    """Give the FEN that a web address ends with, which it writes without spaces."""
    found = _IN_ADDRESS.search(unquote(address[0]))
    return address[0] if found is None else " " + re.sub("[_+]", " ", found[1])


def plain_fields(text: str) -> List[str]:
    """Give the words behind a FEN's first field, without operations, and the side as a letter."""
    text = text.replace("_", " ") if text.startswith("_") else text
    epd = _OPERATIONS.fullmatch(text)
    if epd is not None:
        square = _LAST_SQUARE.search(text)
        text = epd["fields"] + (f" {square[1]}" if square else "")
    text = text.rstrip(_ENDS).removesuffix(".").strip(_ENDS)
    words = re.sub(r"[,:;]\s+(?=[a-h][1-8]$)", " ", text).split()
    asked = [words.pop()] if words and _SQUARE.fullmatch(words[-1]) else []
    side = read_side(" ".join(words))
    if side is not None:
        words = [side]
    elif words and words[0] in ("W", "B", "white", "White", "black", "Black"):
        words[0] = words[0][0].lower()
    return words + asked


def looks_like_fen(line: str) -> bool:
    """Say whether a line holds most of a FEN's rows, whatever is wrong with the others."""
    words = (word.split("/") for word in line.split() if word.count("/") >= _NEAR_ROWS)
    return any(sum(map(bool, map(_NEAR.fullmatch, rows))) >= _NEAR_ROWS for rows in words)


def read_side(line: str) -> Optional[str]:
    """Give the side, ``w`` or ``b``, of which a line says in words that it is to move."""
    sides = {"".join(filter(None, found)).lower()[0] for found in _SIDE.findall(line)}
    return sides.pop() if len(sides) == 1 else None
