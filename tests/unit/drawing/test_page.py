"""The page: self-contained, safe with foreign text, and its data."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from typing import Dict, List, Tuple

import numpy as np

from mlx_trm.drawing.page import frame_data, write_page
from mlx_trm.drawing.scenes import Subject, Take
from mlx_trm.tasks import Maze, MazeConfig

EVIL = (
    '</script ><!--<script ><script>alert(1)</script><img src=x onerror=alert(2)> & "quotes" $data'
)
MAZE = Maze(MazeConfig(name="maze", size=3))


class Elements(HTMLParser):
    """Collects a page's elements and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: List[Tuple[str, Dict[str, str]]] = []
        self.texts: Dict[str, List[str]] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data):
        self.texts.setdefault(self._inside, []).append(data)


def page(title: str = "a maze") -> str:
    """A page of one maze, two rollouts."""
    inputs, label = MAZE.parse("S../.#./..G"), MAZE.parse("Soo/.#o/..G")
    subject = Subject(MAZE, inputs, label)
    takes = (
        Take(0, (subject.frame(1, inputs, None, math.nan, False),), False),
        Take(1, (subject.frame(1, label, None, 0.75, True),), True),
    )
    return write_page([subject.scene(title, takes)])


def test_a_page_loads_nothing() -> None:
    """No element has an address, and its policy allows its own script and style alone."""
    elements = Elements(page())
    for tag, attributes in elements.found:
        assert not {"src", "href", "action", "data", "onclick", "style"} & set(attributes), tag
    assert "link" not in dict(elements.found) and "http:" not in page().replace("http://www.w3", "")
    (policy,) = (a["content"] for tag, a in elements.found if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        text = re.findall(f"<{tag}>(.*?)</{tag}>", page(), flags=re.DOTALL)[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy


def test_foreign_text_stays_text() -> None:
    """A title cannot end the script or begin an element; it arrives as it was."""
    plain, evil = Elements(page()), Elements(page(EVIL))
    assert [tag for tag, _ in evil.found] == [tag for tag, _ in plain.found]
    (data,) = re.findall('id="data">(.*)</script>', page(EVIL))
    assert json.loads(data)[0]["title"] == EVIL and not set("<>&") & set(data)


def test_the_data_of_a_page() -> None:
    """Boards with marks and a palette, rollouts with what each step reached; NaN is null."""
    (data,) = re.findall('id="data">(.*)</script>', page())
    (scene,) = json.loads(data)
    assert (scene["puzzle"]["h"], scene["puzzle"]["w"], scene["puzzle"]["b"]) == (3, 3, [0, 0])
    first, second = scene["takes"]
    assert (first["chosen"], second["chosen"]) == (False, True)
    (frame,) = first["frames"]
    assert frame["q"] is None and frame["correct"] is False and frame["changed"] == 0
    (frame,) = second["frames"]
    board = frame["board"]
    assert (frame["q"], frame["changed"], board["m"]) == (0.75, 3, "122002001")
    colors = np.array([board["p"][at] for at in board["c"]]).reshape(3, 3)
    assert colors[0].tolist() == ["#009e73", "#56b4e9", "#56b4e9"]


def test_every_control_has_a_name() -> None:
    """A label, a text or an aria-label; so that it can be worked without seeing it."""
    elements = Elements(page())
    labels = {a["for"] for tag, a in elements.found if tag == "label"}
    for tag, attributes in elements.found:
        if tag in ("input", "select"):
            assert attributes["id"] in labels
        if tag == "button" and attributes["id"] != "play":
            assert attributes["aria-label"]


def test_confidence_is_two_digits_a_cell() -> None:
    """Per cent, in the order of the cells; what is no number is 0, what is unknown not there."""
    inputs = MAZE.parse("S../.#./..G")
    subject = Subject(MAZE, inputs, None)
    sure = np.array([1, 0.999, 0.5, 0.019, 0, math.nan, 0.1, 0.2, 0.3], dtype=np.float32)
    frame = subject.frame(1, inputs, None, 0.5, None, sure)
    assert frame_data(frame)["k"] == "999950010000102030"
    assert "k" not in frame_data(subject.frame(1, inputs, None, 0.5, None))
