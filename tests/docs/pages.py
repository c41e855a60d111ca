"""The documentation pages as the tests read them: text without code, links, anchors, commands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PROGRAMS = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:[^\s=]*/)?(xft|make|python -m \S+)(?: |$)")


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Return the language and text of every code block."""
    for _, language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        yield language, text


def prose(page: Path) -> str:
    """Return the text without code blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Return every address that the page links to or shows as a picture."""
    return LINK.findall(re.sub(r"`[^`]*`", "", prose(page)))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as MkDocs and GitHub create them."""
    heads = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


def commands(page: Path) -> Iterator[list[str]]:
    """Return every command line for one of our programs in a block without a language, split into words."""
    for language, text in blocks(page):
        if language in ("", "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                line = line.partition(" # ")[0].partition("   #")[0].partition(" > ")[0].strip().removesuffix("&& \\")
                for part in line.split(" && "):
                    if PROGRAMS.match(part):
                        yield shlex.split(part)
