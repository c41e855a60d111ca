"""A user fills in the pipeline's form in Prefect's pages, starts a run and sees its results."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.ui.browser import Form, RunPage
from tests.ui.runs import OVERRIDES, fill_in_tiny_recipe, submitted
from tests.ui.xft_ui import XftUi

pytestmark = pytest.mark.slow


@pytest.fixture
def form(page: Page, ui: XftUi) -> Form:
    return Form(page, ui.prefect, ui.deployment_id("pipeline"))


def test_the_form_explains_itself(form: Form) -> None:
    for section in ("model", "data", "baseline", "upcycle", "sft", "merge", "generate", "evaluate"):
        expect(form.top(section)).to_be_visible()
    assert form.value("upcycle", "num_experts") == "8"
    assert form.value("merge", "shared_expert_weight") == "0.75"
    assert form.value("upcycle", "normalization") == "xft"
    assert form.choices("upcycle", "normalization") == ["xft", "renormalize", "none", "granite", "qwen2_moe"]
    assert len(form.choices("merge", "method")) == 12
    assert "including the shared one" in form.help("upcycle", "num_experts")
    without_help = [
        label.inner_text() for label in form.page.locator("form .schema-form-property > .p-label__header").all()
        if not label.locator(".p-label__description").inner_text().strip()]
    assert without_help == []


@pytest.mark.parametrize(("section", "name", "value", "said"), [
    ("upcycle", "num_experts", 1, "num_experts"), ("sft", "learning_rate", -1, "learning_rate")])
def test_a_wrong_value_is_refused_in_the_form(
    form: Form, ui: XftUi, section: str, name: str, value: float, said: str,
) -> None:
    before = len(ui.runs())
    form.fill(section, name, value)
    form.submit()
    expect(form.page.get_by_text(re.compile(said)).first).to_be_visible()
    assert len(ui.runs()) == before


def test_a_wrong_combination_is_refused_in_the_form(form: Form, ui: XftUi) -> None:
    before = len(ui.runs())
    form.fill("upcycle", "num_experts", 4)
    form.fill("upcycle", "num_experts_per_tok", 6)
    form.submit()
    expect(form.page.get_by_text("6 is greater than the maximum of 4").first).to_be_visible()
    assert len(ui.runs()) == before


def test_what_the_form_cannot_know_is_told_at_once(form: Form, ui: XftUi) -> None:
    """A rule over two sections: one message, and no stack trace."""
    form.fill("upcycle", "shared_expert", False)
    form.fill("merge", "method", "shared_only")
    run_id = submitted(form, ui)
    ui.wait_for_state(run_id, "FAILED", seconds=60)
    run = RunPage(form.page, ui.prefect, run_id)
    run.expect_state("Failed", seconds=10)
    run.find_log_line("there is no shared expert")
    assert not [line for line in ui.log_lines(run_id) if "Traceback" in line]


def test_the_form_as_it_is_found_starts_no_training_of_the_demos_model(form: Form, ui: XftUi) -> None:
    assert form.page.locator("form").get_by_text("None", exact=True).count() == 0  # no field offers it as a choice of types
    run_id = submitted(form, ui)
    ui.wait_for_state(run_id, "FAILED", seconds=60)
    RunPage(form.page, ui.prefect, run_id).find_log_line("No model and no training settings are chosen")


def test_the_demo_needs_nothing_but_run(page: Page, ui: XftUi) -> None:
    """The form's essentials apply: the run's name has the three experts before any stage runs."""
    form = Form(page, ui.prefect, ui.deployment_id("demo"))
    assert form.top("recipe_file").locator("textarea, input").first.input_value() == "deployments/recipes/demo.yaml"
    form.fill("essentials", "upcycle_num_experts", 3)
    form.fill("essentials", "data_max_length", 64)
    run_id = submitted(form, ui, "demo")
    run = RunPage(page, ui.prefect, run_id)
    expect(page.locator(".page-heading").get_by_text("demo-3x3-xft-learned")).to_be_visible(timeout=120_000)
    ui.wait_for_checkpoints()
    run.press("Cancel")
    ui.wait_for_state(run_id, "CANCELLED", seconds=120)


def test_a_recipe_file_with_overrides_runs_to_its_end(form: Form, ui: XftUi) -> None:
    form.fill(None, "recipe_file", "deployments/recipes/demo.yaml")
    for override in OVERRIDES:
        form.add_item("overrides", override)
    finished_run_is_shown(submitted(form, ui), form, ui, "demo-2x2-xft-learned")


def test_a_recipe_that_was_typed_in_runs_to_its_end(form: Form, ui: XftUi) -> None:
    fill_in_tiny_recipe(form)
    form.fill("upcycle", "num_experts", 3)
    form.fill("upcycle", "normalization", "none")
    finished_run_is_shown(submitted(form, ui), form, ui, "tiny-3x2-none-learned")


def finished_run_is_shown(run_id: str, form: Form, ui: XftUi, name: str) -> None:
    page = form.page
    ui.wait_for_state(run_id, "COMPLETED")
    run = RunPage(page, ui.prefect, run_id)
    run.expect_state("Completed", seconds=20)
    expect(page.locator(".page-heading").get_by_text(name)).to_be_visible()
    run.find_log_line("upcycle: done in")  # from the stage's own process
    run.find_artifact("model-card")
    run.open_artifact("comparison")
    for cell in ("base", "pass@1", "merged"):
        expect(page.locator("table").get_by_text(re.compile(cell)).first).to_be_visible()
    assert set(ui.task_states(run_id).values()) <= {"Completed", "Cached"}
