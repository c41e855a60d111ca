from tests.flows.conftest import RECIPE, REPOSITORY  # noqa: F401, I001  (first: it decides where all files are kept)

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Page

from tests.ui.browser import chromium, new_page
from tests.ui.xft_ui import XftUi


@pytest.fixture(scope="session")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XftUi]:
    """The session's only ``xft ui``, with its worker. At the end, Ctrl-C must leave nothing behind."""
    started = XftUi(tmp_path_factory.mktemp("ui") / "home")
    try:
        started.start()
        yield started
        assert started.end() == 0
        assert not started.processes()
    finally:
        started.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page that may only contact this machine. If the test fails, a screenshot is kept."""
    opened = new_page(browser)
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    failed_before = request.session.testsfailed
    yield opened
    if request.session.testsfailed > failed_before:
        opened.screenshot(path=tmp_path / "page.png")
    opened.context.close()
    here = ("http://127.0.0.1:", "data:", "blob:")
    assert [address for address in asked if not address.startswith(here)] == []


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny recipe with another seed, so that it cannot reuse other tests' stages. Accepts changes to SFT's fields."""
    def write(seed: int, **sft: object) -> Path:
        content = RECIPE | {"seed": seed, "sft": RECIPE["sft"] | sft}  # type: ignore[operator]
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path
    return write
