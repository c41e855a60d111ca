"""MLflow's own pages show a comparison: parameters and metrics are found by name, and each variant's value beside them."""

import pytest
from playwright.sync_api import Page, expect

from tests.flows.conftest import RECIPE
from tests.ui.browser import open_mlflow_comparison, open_mlflow_runs, show_columns
from tests.ui.xft_ui import XftUi

pytestmark = pytest.mark.slow
NAMES = ["upcycle.num_experts", "upcycle.normalization", "merged/plus_pass_at_1", "merged/held_out_nll"]


@pytest.fixture(scope="module")
def variants(ui: XftUi) -> list[str]:
    """MLflow runs of two variants, in the order of their expert counts."""
    started = [
        ui.run_deployment("pipeline", **RECIPE | {"upcycle": {"num_experts": number, "num_experts_per_tok": 2}})
        for number in (2, 3)]
    for run_id in started:
        ui.wait_for_state(run_id, "COMPLETED", seconds=400)
    return [ui.tracking_run(run_id).info.run_id for run_id in started]


def test_the_table_of_runs_has_columns_by_name(page: Page, ui: XftUi, variants: list[str]) -> None:
    experiment = ui.tracking().get_run(variants[0]).info.experiment_id
    open_mlflow_runs(page, ui.mlflow, experiment)
    show_columns(page, ["upcycle.num_experts", "merged/held_out_nll"])
    for name in ("tiny-2x2-xft-learned", "tiny-3x2-xft-learned"):
        expect(page.get_by_text(name).first).to_be_visible()


def test_the_compare_page_has_parameters_and_metrics_by_name(page: Page, ui: XftUi, variants: list[str]) -> None:
    experiment = ui.tracking().get_run(variants[0]).info.experiment_id
    open_mlflow_comparison(page, ui.mlflow, [experiment], variants)
    for name in NAMES:
        expect(page.get_by_text(name, exact=True).first).to_be_attached()
    parameters = page.locator("tr").filter(has=page.get_by_text("upcycle.num_experts", exact=True))
    assert parameters.locator("td").all_inner_texts()[-2:] == ["2", "3"]
    measured = [ui.tracking().get_run(run_id).data.metrics["merged/held_out_nll"] for run_id in variants]
    shown = [f"{round(value, 3):g}" for value in measured]
    for value in shown:
        expect(page.get_by_text(value, exact=True).first).to_be_attached()
