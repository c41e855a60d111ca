"""A comparison started in Prefect's pages, and MLflow's pages of it, which show parameters and metrics by name."""

import re
from dataclasses import dataclass

import pytest
from mlflow.entities import Run
from playwright.sync_api import Browser, Page, expect

from tests.ui.browser import Form, RunPage, new_page, open_mlflow_comparison, open_mlflow_runs, scroll_to
from tests.ui.runs import OVERRIDES, submitted
from tests.ui.xft_ui import XftUi

pytestmark = pytest.mark.slow
GRID = ["upcycle.num_experts=[2,3]", "upcycle.normalization=[xft,none]"]
NAMES = ["upcycle.num_experts", "upcycle.normalization", "merged/plus_pass_at_1", "merged/held_out_nll"]


@dataclass(frozen=True)
class Comparison:
    run_id: str
    experiment_id: str
    variants: list[Run]


@pytest.fixture(scope="module")
def comparison(ui: XftUi, browser: Browser) -> Comparison:
    """Compare a shortened demo recipe by expert count and normalization, started in the form of the deployment ``compare``."""
    page = new_page(browser)
    form = Form(page, ui.prefect, ui.deployment_id("compare"))
    form.fill(None, "recipe_file", "deployments/recipes/demo.yaml")
    for override in OVERRIDES:
        form.add_item("overrides", override)
    form.change_items("grid", GRID)
    run_id = submitted(form, ui, "compare")
    page.close()
    ui.wait_for_state(run_id, "COMPLETED")
    parent = ui.tracking_run(run_id)
    found = ui.tracking().search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.`xft.kind` = 'pipeline'")
    assert len(found) == 4
    return Comparison(run_id, parent.info.experiment_id, found)


def test_its_run_shows_the_report_and_leads_to_mlflow(page: Page, ui: XftUi, comparison: Comparison) -> None:
    run = RunPage(page, ui.prefect, comparison.run_id)
    run.expect_state("Completed", seconds=20)
    for key in ("variants", "variants-table", "charts-in-mlflow"):
        run.find_artifact(key)
    run.open_artifact("compare-in-mlflow")
    link = page.get_by_role("link", name="Compare the variants in MLflow").get_attribute("href")
    assert link is not None and link.startswith("/mlflow/#")
    open_mlflow_comparison(page, ui.prefect + link, len(comparison.variants))
    for name in NAMES:
        expect(page.get_by_text(name, exact=True).first).to_be_attached()
    experts = page.locator("tr").filter(has=page.get_by_text("upcycle.num_experts", exact=True)).first
    expect(experts).to_contain_text(re.compile(r"2.*3|3.*2"))
    for variant in comparison.variants:
        expect(page.get_by_text(variant.info.run_name).first).to_be_attached()
        loss = f"{round(variant.data.metrics['merged/held_out_nll'], 3):g}"
        expect(page.get_by_text(loss, exact=True).first).to_be_attached()


def test_the_charts_page_shows_the_varying_fields(page: Page, ui: XftUi, comparison: Comparison) -> None:
    page.goto(ui.link(comparison.run_id, "charts-in-mlflow"))
    for variant in comparison.variants:
        expect(page.get_by_text(variant.info.run_name, exact=True).first).to_be_visible(timeout=60_000)
    for name in ("merged/plus_pass_at_1", "merged/held_out_nll", "Parallel Coordinates"):
        scroll_to(page, page.get_by_text(name))
        expect(page.get_by_text(name).first).to_be_visible()


def test_losses_are_side_by_side_and_coloured_by_expert_count(page: Page, ui: XftUi, comparison: Comparison) -> None:
    page.goto(ui.link(comparison.run_id, "charts-in-mlflow"))
    for curve in ("moe/loss", "mix/loss"):
        expect(page.get_by_text(curve, exact=True).first).to_be_visible(timeout=60_000)
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_text(re.compile(r"by upcycle\.num_experts$")).first.click()
    expect(page.get_by_text("Group by: upcycle.num_experts")).to_be_visible(timeout=60_000)
    for variant in comparison.variants:
        history = ui.tracking().get_metric_history(variant.info.run_id, "moe/loss")
        assert [point.step for point in history] == list(range(1, 13))


def test_mlflows_table_of_variants_has_columns_by_name(page: Page, ui: XftUi, comparison: Comparison) -> None:
    open_mlflow_runs(page, ui.mlflow, comparison.experiment_id)
    for name in ("upcycle.num_experts", "merged/plus_pass_at_1"):  # without choosing them
        expect(page.get_by_role("columnheader").filter(has_text=name).first).to_be_attached()


def test_all_variants_carry_the_same_names(comparison: Comparison) -> None:
    for variant in comparison.variants:
        assert variant.data.params.keys() == {"upcycle.num_experts", "upcycle.normalization"}
        assert {"merged/plus_pass_at_1", "merged/held_out_nll", "moe/held_out_nll"} <= variant.data.metrics.keys()
    numbers = {(run.data.params["upcycle.num_experts"], run.data.params["upcycle.normalization"])
               for run in comparison.variants}
    assert numbers == {("2", "xft"), ("2", "none"), ("3", "xft"), ("3", "none")}
