"""A first walk without documentation: from pressing Run to the losses of 2, 4 and 8 experts side by side, to the table of
pass@1, and to the registered model's card, each in three clicks. It works on loopback and through another port, and nothing
leaves the machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.ui.browser import Form, another_chromium, new_page, scroll_to
from tests.ui.netlog import left_the_machine
from tests.ui.runs import OVERRIDES, submitted
from tests.ui.tunnel import Tunnel
from tests.ui.xft_ui import XftUi

pytestmark = pytest.mark.slow
MOST_CLICKS = 3
EXPERTS = ("2", "4", "8")
GRID = ["upcycle.num_experts,upcycle.num_experts_per_tok=[[2,2],[4,3],[8,3]]"]


@pytest.fixture(params=["loopback", "another port"])
def address(request: pytest.FixtureRequest, ui: XftUi) -> Iterator[str]:
    """Return Prefect's address, the only one that the user knows."""
    if request.param == "loopback":
        yield ui.prefect
        return
    tunnel = Tunnel(int(ui.prefect.rpartition(":")[2]))
    yield f"http://localhost:{tunnel.port}"
    tunnel.close()


class Walk:
    """Walk from a run's page: counts clicks, and follows links that open another page."""

    def __init__(self, page: Page, pictures: Path) -> None:
        self.page, self._start, self._pictures = page, page.url, pictures

    def begin(self) -> None:
        """Start on the run's page, where a user is after Run."""
        self.page.goto(self._start)
        self.clicks = 0

    def tab(self, name: str) -> None:
        self._click(self.page.locator(".p-tab").filter(has_text=name))

    def artifact(self, key: str) -> None:
        """Scroll to the artifact as a user does, because the page only renders what is in view. Ends on the artifact's own
        page."""
        card = self.page.get_by_text(key, exact=True)
        scroll_to(self.page, card)
        self._click(card.first)
        self.page.wait_for_url("**/artifacts/artifact/**")
        expect(self.page.locator(".p-tab")).to_have_count(0)  # from the run's page, which stays visible for a moment

    def link(self, words: str) -> Page:
        """Return the page that the link opens."""
        with self.page.expect_popup() as opened:
            self._click(self.page.get_by_role("link", name=words, exact=True).first)  # cards have links, too
        return opened.value

    def _click(self, what: Locator) -> None:
        self.clicks += 1
        assert self.clicks <= MOST_CLICKS
        what.click()

    def picture(self, page: Page, name: str) -> None:
        page.wait_for_timeout(2000)  # charts render
        page.screenshot(path=self._pictures / f"{name}.png")


def started(page: Page, address: str, ui: XftUi, deployment: str, grid: list[str] | None = None) -> str:
    """Press Run in the deployment's unchanged form, with a shortened recipe; the user is then on the run's page."""
    form = Form(page, address, ui.deployment_id(deployment))
    for override in OVERRIDES:
        form.add_item("overrides", override)
    if grid:
        form.change_items("grid", grid)
    run_id = submitted(form, ui, deployment)
    page.goto(f"{address}/runs/flow-run/{run_id}")
    return run_id


def test_from_run_to_what_a_person_looks_for(browser: Browser, ui: XftUi, address: str, tmp_path: Path) -> None:
    record = tmp_path / "netlog.json"
    with another_chromium(browser, f"--log-net-log={record}") as recorded:
        page = new_page(recorded)
        compared = started(page, address, ui, "compare", GRID)
        walk = Walk(page, tmp_path)  # starts on this page and leaves it
        losses_are_side_by_side(walk, address)
        ui.wait_for_state(compared, "COMPLETED")
        the_table_of_pass_at_1_is_there(walk)
        demo = started(page, address, ui, "demo")
        ui.wait_for_state(demo, "COMPLETED")
        the_registered_models_card_is_there(Walk(page, tmp_path), address)
    assert left_the_machine(record) == set()


def losses_are_side_by_side(walk: Walk, address: str) -> None:
    """Compare the losses while the variants train."""
    walk.begin()
    walk.tab("Artifacts")
    walk.artifact("start-here")
    charts = walk.link("Losses of the variants side by side, as they train")
    assert charts.url.startswith(f"{address}/mlflow/")
    expect(charts.get_by_text("moe/loss", exact=True).first).to_be_visible(timeout=600_000)
    for experts in EXPERTS:
        expect(charts.get_by_text(f"experts={experts}").first).to_be_visible(timeout=600_000)
    walk.picture(charts, "losses")
    charts.close()


def the_table_of_pass_at_1_is_there(walk: Walk) -> None:
    walk.begin()
    walk.tab("Artifacts")
    walk.artifact("variants-table")
    table = walk.page.locator("table").first
    expect(table).to_contain_text("pass@1 %")
    for experts in EXPERTS:
        expect(table).to_contain_text(f"experts={experts}")
    walk.picture(walk.page, "table")


def the_registered_models_card_is_there(walk: Walk, address: str) -> None:
    walk.begin()
    walk.tab("Artifacts")
    walk.artifact("model-card")
    version = walk.link("MLflow")
    assert version.url.startswith(f"{address}/mlflow/")
    expect(version.get_by_text("Version 1").first).to_be_visible()
    expect(version.get_by_text("How to load it").first).to_be_visible()
    walk.picture(version, "card")
    version.close()
