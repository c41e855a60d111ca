"""Check that the links, paths, commands and recipes in the documentation exist, and how each page begins."""

import argparse
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from flows.options import parser as xft_parser
from tests.docs.pages import DOCS, PAGES, REPOSITORY, anchors, blocks, commands, links, name_of, prose
from xft_core.__main__ import _parser as core_parser
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe

PURPOSE = re.compile(r"(Read|Use|Follow) this page |Look up |Start here ")
OUR_PATH = re.compile(r"`((?:xft_core|tasks|flows|tests|deployments|performance|docs)/[\w./-]*)[`:]")
DIALECT = re.compile(
    r"gone on from|goes on from|be meant|one's own|of its own right|costs a warning|is none\b|come together|holds? against"
    r"|what is (kept|made|left) ")
pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


def generated() -> dict[Path, str]:
    """Return the pages that are generated when the site is built."""
    from tests.docs.test_site import load_generator

    return {DOCS / "reference" / f"{name}.md": make() for name, make in load_generator().PAGES.items()}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    made = generated()
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target in made or target.exists(), link
        if anchor:
            text = made.get(target) or target.read_text(encoding="utf-8")
            assert anchor in anchors(text), link


@pages
def test_paths_of_this_repository_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it describes the past
    shown = set(OUR_PATH.findall(prose(page)))
    assert [path for path in sorted(shown) if not (REPOSITORY / path).exists()] == []


@pages
def test_commands_are_ones_that_the_programs_take(page: Path) -> None:
    for words in commands(page):
        while "=" in words[0]:
            words = words[1:]
        program, arguments = Path(words[0]).name, words[1:]
        if program == "make":
            targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert set(arguments) <= set(targets), words
        elif program == "xft":
            accepted(xft_parser(), arguments)
        elif arguments[1] == "xft_core":
            if "{" not in arguments[2]:  # a list of stages to choose from
                accepted(core_parser(), arguments[2:])
        else:
            module = arguments[1]
            assert module in ("venv", "json.tool", "pytest") or importlib.util.find_spec(module), words


def accepted(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    # An option in brackets is optional: the command line must be accepted with all of them.
    plain = [word.strip("[]") for word in arguments]
    plain = [choice for word in plain for choice in ([word.strip("{}").split(",")[0]] if word.startswith("{") else [word])]
    try:
        parser.parse_args(plain)
    except SystemExit as ended:
        assert ended.code == 0, f"{parser.prog} does not take {' '.join(plain)}"


@pages
def test_recipes_are_ones_that_are_taken(page: Path) -> None:
    for language, text in blocks(page):
        content = yaml.safe_load(text) if language == "yaml" else None
        if isinstance(content, dict) and set(content) <= set(Recipe.model_fields):
            parse(Recipe, content)


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_relative_to(DOCS)], ids=name_of)
def test_a_page_begins_with_what_it_is_for(page: Path) -> None:
    paragraphs = prose(page).split("\n\n")
    head, first = paragraphs[0], paragraphs[1]
    assert head.startswith("# ")
    if page != DOCS / "index.md":
        assert PURPOSE.match(first), first


def test_generated_pages_begin_with_what_they_are_for() -> None:
    for text in generated().values():
        assert PURPOSE.match(text.split("\n\n")[1])


@pages
def test_the_words_are_those_of_the_field(page: Path) -> None:
    assert DIALECT.search(prose(page)) is None


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_code_names_pages_that_exist() -> None:
    folders = ("xft_core", "tasks", "flows", "performance", "tests")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    for path in [*files, REPOSITORY / "prefect.yaml", REPOSITORY / "Makefile"]:
        for page in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
            assert (REPOSITORY / page).is_file(), f"{path.name} names {page}"
