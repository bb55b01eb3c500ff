"""Puzzles being solved as one HTML page: it needs no network, and runs no foreign text."""

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Dict, List, Sequence

import numpy as np

from mlx_trm.drawing.scenes import Frame, Scene, Take
from mlx_trm.errors import ConfigError
from mlx_trm.system.files import replace_file
from mlx_trm.tasks.board import Board, css_color

HERE = Path(__file__).parent
SCRIPTS = ("board.js", "player.js", "page.js")  # each uses what those before it define
MOST_CELLS = 4_000_000  # some ten megabytes


def save_page(path: Path, scenes: Sequence[Scene], option: str = "--html") -> None:
    """Write puzzles as a page, whole or not at all.

    Args:
        path: of the file; replaced if it is there.
        scenes: a puzzle each, at least one.
        option: that named the file, for errors.

    Raises:
        ConfigError: if there are too many steps, or the file cannot be written.
    """
    boards = (frame.board for scene in scenes for take in scene.takes for frame in take.frames)
    if sum(board.symbols.size for board in boards) > MOST_CELLS:
        raise ConfigError(f"{option}: so many steps do not fit a page; show fewer puzzles")
    try:
        with replace_file(path) as temporary:
            temporary.write_text(write_page(scenes), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: cannot be written ({error.strerror}); name another file"
        ) from error


def write_page(scenes: Sequence[Scene]) -> str:
    """Give the page: a slider over steps and one over rollouts, for keyboards too."""
    style = read_part("page.css")
    script = "\n".join(map(read_part, SCRIPTS))
    template = Template(read_part("page.html"))
    return template.substitute(
        title=escape(f"{scenes[0].title[:80]} - mlx_trm"),
        player=read_part("player.html"),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_as_data([_scene(scene) for scene in scenes]),
    )


def read_part(name: str) -> str:
    """Read a part of the page, such as ``player.html``; another page may have it too."""
    return (HERE / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    """Give what a content security policy knows a script or a style sheet by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _as_data(content: List[Dict[str, Any]]) -> str:
    """Write JSON that can stand in a page: nothing in it ends the element or begins another."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _scene(scene: Scene) -> Dict[str, Any]:
    return {
        "title": scene.title,
        "puzzle": board_data(scene.puzzle),
        "solution": None if scene.solution is None else board_data(scene.solution),
        "takes": [_take(take) for take in scene.takes],
    }


def _take(take: Take) -> Dict[str, Any]:
    frames = [frame_data(frame) for frame in take.frames]
    return {"rollout": take.rollout, "chosen": take.chosen, "frames": frames}


def frame_data(frame: Frame) -> Dict[str, Any]:
    """Give a step as the scripts draw it; ``k`` has two digits a cell, per cent of confidence."""
    found: Dict[str, Any] = {
        "step": frame.step,
        "q": None if frame.belief is None else round(frame.belief, 6),
        "correct": frame.correct,
        "changed": frame.changed,
        "board": board_data(frame.board),
    }
    if frame.confidence is not None:
        per_cent = np.nan_to_num(frame.confidence * 100).clip(0, 99).astype(int)
        found["k"] = "".join(f"{number:02d}" for number in per_cent.flat)
    return found


def board_data(board: Board) -> Dict[str, Any]:
    """Give a board: one string of marks, symbols, and colours by their number in a palette."""
    height, width = board.shape
    found: Dict[str, Any] = {
        "h": height,
        "w": width,
        "s": [str(symbol) for symbol in board.symbols.flat],
        "m": "".join(map(str, board.marks().flat)),
        "b": list(board.boxes),
        "t": board.text,
    }
    if board.colors is not None:
        colors = board.colors.reshape(-1, 3)
        palette, places = np.unique(colors, axis=0, return_inverse=True)
        found["p"] = [css_color(color) for color in palette]
        found["c"] = places.reshape(-1).tolist()
    return found
