"""Hooks of MkDocs (mkdocs.yml names this file): what the repository shows and a site cannot.

The documents are read in the repository too, so they link to files outside docs/. The site has no
such files. Where ``extra.repository`` in mkdocs.yml is an address, such a link leads there; where
there is none, its text stays and the link goes. A link to a file that does not exist is a warning,
which ``mkdocs build --strict`` does not let pass.
"""

import logging
import os.path
import re
from pathlib import Path
from typing import Any

LOG = logging.getLogger("mkdocs.hooks.site_links")
# A fence and what it holds, code in a line, or a link: of these only the last is changed.
PIECES = re.compile(
    r"(?P<code>^ *(?P<fence>```+|~~~+).*?^ *(?P=fence)|(?P<tick>`+)[^`\n][^\n]*?(?P=tick)(?!\]\())"
    r"|(?<!!)\[(?P<text>(?:`[^`\n]*`|[^\[\]`])+)\]\((?P<target>[^)\s]+)\)",
    flags=re.MULTILINE | re.DOTALL,
)
# Where the page of examples/browser is put beside the site, the first page says so.
BROWSER = (
    '<a class="md-button md-button--primary" href="solve/index.html">Solve a Sudoku in this '
    "browser</a> The network runs on your machine; nothing is sent."
)
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?([^<]*)</code>")


def on_config(config: Any) -> Any:
    """Put the repository's address into the navigation, where it is known."""
    if config.extra.get("repository"):
        config.nav.append({"Repository": config.extra["repository"]})
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Give a page's text with its links to files outside the site changed."""
    docs = Path(config.docs_dir)
    if os.environ.get("BROWSER_PAGE"):
        markdown = markdown.replace("<!-- browser page -->", BROWSER)
    return rewrite_links(
        markdown, docs / page.file.src_uri, docs, config.extra.get("repository") or ""
    )


def on_page_content(html: str, **_: Any) -> str:
    """Show what docstrings refer to by a role, such as :func:`prepare`, as plain code."""
    return ROLE.sub(r"<code>\1</code>", html)


def rewrite_links(markdown: str, page: Path, docs: Path, repository: str) -> str:
    """Change the links that lead out of the site.

    Args:
        markdown: the page's text.
        page: its file; relative links begin in its folder.
        docs: the folder of the documents, in the root of the repository.
        repository: its address, or "" where there is none.
    """
    root = docs.parent

    def changed(match: "re.Match[str]") -> str:
        text, target = match["text"], match["target"]
        if match["code"] or re.match(r"[a-z]+:|#", target):
            return match[0]
        file, mark, anchor = target.partition("#")
        there = Path(os.path.normpath(page.parent / file))
        if docs in there.parents and there.suffix in {".md", ".png"}:
            return match[0]  # a page or a picture of the site: MkDocs checks it
        if not there.exists() or root not in there.parents:
            LOG.warning("%s links to %s, which is not in the repository", page.name, target)
            return match[0]
        kind = "tree" if there.is_dir() else "blob"
        name = there.relative_to(root).as_posix()
        return f"[{text}]({repository}/{kind}/HEAD/{name}{mark}{anchor})" if repository else text

    return PIECES.sub(changed, markdown)
