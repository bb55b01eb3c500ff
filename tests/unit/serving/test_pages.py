"""The pages: they load their own parts alone, and no part writes markup out of text."""

import re
from html.parser import HTMLParser
from typing import Dict, List, Tuple

import pytest

from mlx_trm.serving.pages import make_pages

PAGES = make_pages()


class Elements(HTMLParser):
    """Collects a page's elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: List[Tuple[str, Dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("text", [PAGES.solving, PAGES.runs], ids=["solving", "runs"])
def test_a_page_loads_its_own_parts_alone(text: str) -> None:
    """Nothing inline, which the policy would not let run, and nothing from elsewhere."""
    ids = []
    for tag, attributes in Elements(text).found:
        address = attributes.get("src") or (tag == "link" and attributes["href"]) or ""
        if address and address != "data:,":
            assert address.startswith("/assets/") and address[len("/assets/") :] in PAGES.assets
        assert not {"style", "onclick", "onload"} & set(attributes), tag
        ids += [attributes["id"]] if "id" in attributes else []
        if tag == "label" and "for" in attributes:
            assert f'id="{attributes["for"]}"' in text
    assert len(set(ids)) == len(ids)
    assert not re.search(r"<script(?![^>]* src=)|<style", text)


def test_scripts_put_text_in_as_text() -> None:
    for name, (media, text) in PAGES.assets.items():
        assert media in ("text/css", "text/javascript")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(", text
        ), name
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert "@import" not in text and "url(" not in text, name


def test_scripts_find_the_elements_that_they_name() -> None:
    """Ids in scripts are ids of the page that they belong to."""
    for page, scripts in (
        (PAGES.solving, ("player.js", "shared.js", "solve.js")),
        (PAGES.runs, ("shared.js", "runs.js")),
    ):
        for script in scripts:
            for name in re.findall(r'byId\("([\w-]+)"\)', PAGES.assets[script][1]):
                assert f'id="{name}"' in page, (script, name)
