"""Automations: changed data starts a run, and a broken stage sends a message. Tests check the pages and received messages."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from playwright.sync_api import Page, expect

from tests.flows.conftest import RECIPE
from tests.ui.browser import RunPage
from tests.ui.xft_ui import XftUi, wait_for
from xft_core.demo import DEMO_DIR

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Instruction data that a test may change."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((DEMO_DIR / "instruct.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:80]))
    return path


def test_changed_data_starts_a_run_by_itself(page: Page, ui: XftUi, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    section: Any = RECIPE["data"]
    recipe.write_text(yaml.safe_dump(RECIPE | {"data": section | {"path": str(data)}}))
    look: dict[str, Any] = {"recipe_file": str(recipe), "overrides": ["name=watched", "registry.register=none"]}

    def started() -> list[dict[str, Any]]:
        return [run for run in ui.runs("pipeline") if run["parameters"].get("recipe_file") == str(recipe)]

    for _ in range(2):  # the first check records the state, the second finds it unchanged
        ui.wait_for_state(ui.run_deployment("watch", **look), "COMPLETED", seconds=300)
    assert not started()
    with data.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"instruction": "Print 41.", "response": "print(41)"}) + "\n")
    ui.wait_for_state(ui.run_deployment("watch", **look), "COMPLETED", seconds=300)
    run, = wait_for(started, 60, "no run was started")
    assert run["parameters"]["overrides"] == look["overrides"]
    ui.wait_for_state(run["id"], "COMPLETED")
    RunPage(page, ui.prefect, run["id"]).expect_state("Completed", seconds=30)
    expect(page.locator(".page-heading").get_by_text("watched-2x2-xft-learned")).to_be_visible()


class Inbox:
    """Run a service that receives messages."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        messages = self.messages

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    found = Inbox()
    yield found
    found.server.shutdown()


def set_address(ui: XftUi, kind: str, name: str, address: str) -> None:
    """Set the address as a user does on the block's page."""
    block = httpx.get(f"{ui.prefect}/api/block_types/slug/{kind}/block_documents/name/{name}", auth=ui.secret).json()
    answer = httpx.patch(f"{ui.prefect}/api/block_documents/{block['id']}", auth=ui.secret, json={
        "data": {"url": address}, "merge_existing_data": True})
    answer.raise_for_status()


def switch_on(page: Page, ui: XftUi, name: str) -> None:
    """Switch an automation on, on the page of automations, where all are off."""
    page.goto(f"{ui.prefect}/automations")
    card = page.locator(".automations-list-item, .automation-card, li, .p-card").filter(has_text=name).last
    expect(card).to_be_visible()
    switch = card.get_by_role("switch")
    assert switch.get_attribute("aria-checked") == "false"
    switch.click()
    expect(switch).to_have_attribute("aria-checked", "true")


def test_a_broken_stage_of_the_nightly_run_sends_a_message(
    page: Page, ui: XftUi, inbox: Inbox, write_recipe: Callable[..., Path],
) -> None:
    """The mixing coefficients of one routed expert cannot move, and the recipe stops on that."""
    set_address(ui, "custom-webhook", "xft-notifications", inbox.address)
    switch_on(page, ui, "xft: notify")
    run_id = ui.run_deployment(
        "nightly", recipe_file=str(write_recipe(seed=92)), overrides=["checks.unmoved_coefficients=stop"], seed_by_date=True)
    run = ui.wait_for_state(run_id, "FAILED")
    wait_for(lambda: inbox.messages, 60, "no message came")
    message = inbox.messages[0]
    assert message["subject"] == f"XFT: {run['name']} is Failed"
    assert "The mixing coefficients barely moved" in message["body"] and f"/runs/flow-run/{run_id}" in message["body"]
    seed = ui.tracking_run(run_id).data.params["seed"]
    assert seed == run["expected_start_time"][:10].replace("-", "")


def test_a_finished_run_calls_a_webhook(page: Page, ui: XftUi, inbox: Inbox, write_recipe: Callable[..., Path]) -> None:
    set_address(ui, "webhook", "xft-webhook", inbox.address)
    switch_on(page, ui, "xft: call a webhook")
    recipe = write_recipe(seed=93)
    ui.wait_for_state(ui.run_deployment("pipeline", recipe_file=str(recipe)), "COMPLETED")
    wait_for(lambda: inbox.messages, 60, "no call came")
    assert inbox.messages[0]["metrics"]["merged/held_out_nll"] > 0
    assert Path(inbox.messages[0]["report"]).is_dir()
