"""Cancel in Prefect's pages ends the training within seconds and leaves what the next start goes on from."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.ui.browser import RunPage
from tests.ui.xft_ui import XftUi, wait_for

pytestmark = pytest.mark.slow
SECONDS = 20  # the stage has ten to write a checkpoint


def test_cancel_ends_training_and_the_next_start_goes_on(page: Page, ui: XftUi, write_recipe: Callable[..., Path]) -> None:
    recipe = str(write_recipe(seed=21, max_steps=300, epochs=300, checkpoint_steps=10))
    run_id = ui.run_deployment("pipeline", recipe_file=recipe)
    run = RunPage(page, ui.prefect, run_id)
    run.expect_state("Running", seconds=60)
    checkpoints = ui.wait_for_checkpoints()
    assert ui.processes("xft_core\0sft")
    run.press("Cancel")
    started = time.monotonic()
    wait_for(lambda: not ui.processes("xft_core\0sft"), SECONDS, "the training went on")
    ui.wait_for_state(run_id, "CANCELLED", seconds=SECONDS)
    assert time.monotonic() - started < SECONDS
    run.expect_state("Cancelled", seconds=20)
    assert list(checkpoints.glob("checkpoint-*"))
    attempt = ui.tracking_run(run_id)
    assert attempt.info.status == "KILLED"

    again = ui.run_deployment("pipeline", recipe_file=recipe)
    ui.wait_for_state(again, "COMPLETED")
    RunPage(page, ui.prefect, again).find_log_line("going on from step")
    assert ui.tracking_run(again).info.status == "FINISHED"
