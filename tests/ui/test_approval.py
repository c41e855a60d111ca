"""A champion that a user must approve: the run waits in Prefect's pages, and the alias moves only after the answer there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.ui.browser import RunPage
from tests.ui.xft_ui import XftUi, wait_for

pytestmark = pytest.mark.slow


def champion(ui: XftUi, name: str) -> int | None:
    found = ui.tracking().search_registered_models(f"name = '{name}'")
    return int(found[0].aliases["champion"]) if found and "champion" in found[0].aliases else None


def suspended(ui: XftUi, recipe: Path, name: str) -> str:
    run_id = ui.run_deployment("pipeline", recipe_file=str(recipe), overrides=[
        "registry.approval=required", f"registry.name={name}"])
    wait_for(lambda: ui.run(run_id)["state_type"] not in ("SCHEDULED", "PENDING", "RUNNING"), 900, "the run did not pause")
    assert ui.run(run_id)["state_name"] == "Suspended", ui.log_lines(run_id)[-20:]
    return run_id


@pytest.mark.parametrize("approve", [True, False], ids=["approved", "rejected"])
def test_the_alias_moves_only_when_it_is_approved_in_the_page(
    page: Page, ui: XftUi, write_recipe: Callable[..., Path], approve: bool,
) -> None:
    name = "approved" if approve else "rejected"
    run_id = suspended(ui, write_recipe(seed=91), name)
    assert ui.tracking_run(run_id).info.status == "FINISHED"
    assert ui.tracking().get_model_version(name, "1").tags["xft.approval"] == "waits for approval"
    assert champion(ui, name) is None
    run = RunPage(page, ui.prefect, run_id)
    run.expect_state("Suspended", seconds=30)
    page.locator(".page-heading").get_by_role("button", name="Resume").click()
    asked = page.locator(".p-modal")
    expect(asked.get_by_text("May version 1 of")).to_be_visible()
    expect(asked.get_by_text("held-out loss")).to_be_visible()
    if approve:
        asked.get_by_role("switch").click()
    asked.locator("textarea, input[type=text]").last.fill("looked at the report")
    asked.get_by_role("button", name="Resume").or_(asked.get_by_role("button", name="Submit")).last.click()
    ui.wait_for_state(run_id, "COMPLETED", seconds=300)
    run = RunPage(page, ui.prefect, run_id)
    run.expect_state("Completed", seconds=30)
    said = ui.tracking().get_model_version(name, "1").tags["xft.approval"]
    assert said == f"{'approved' if approve else 'rejected'}: looked at the report"
    assert champion(ui, name) == (1 if approve else None)
    states = ui.task_states(run_id)
    assert states["decide"] == "Completed"
    run.find_artifact("approval")
