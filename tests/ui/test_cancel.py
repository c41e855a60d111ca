"""Cancel in Prefect's pages ends the training within seconds, and leaves a checkpoint from which the next start resumes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.ui.browser import RunPage
from tests.ui.xft_ui import XftUi, wait_for

pytestmark = pytest.mark.slow
WORKER = "xft_core.stages.torchrun_worker"
SECONDS = 20  # the stage has ten seconds to write a checkpoint


@pytest.mark.parametrize("num_processes", [1, 2])
def test_cancel_ends_training_and_the_next_start_goes_on(
        num_processes: int, page: Page, ui: XftUi, write_recipe: Callable[..., Path]) -> None:
    recipe = str(write_recipe(
        seed=20 + num_processes, max_steps=150, epochs=150, checkpoint_steps=10, num_processes=num_processes,
        micro_batch_size=4 // num_processes))
    run_id = ui.run_deployment("pipeline", recipe_file=recipe)
    run = RunPage(page, ui.prefect, run_id)
    run.expect_state("Running", seconds=60)
    checkpoints = ui.wait_for_checkpoints()
    assert ui.processes("xft_core\0sft")
    assert len(ui.processes(WORKER)) == (num_processes if num_processes > 1 else 0)
    run.press("Cancel")
    wait_for(lambda: not ui.processes("xft_core\0sft") and not ui.processes(WORKER), SECONDS, "the training went on")
    ui.wait_for_state(run_id, "CANCELLED", seconds=60)
    run.expect_state("Cancelled", seconds=20)
    assert list(checkpoints.glob("checkpoint-*"))
    attempt = ui.tracking_run(run_id)
    assert attempt.info.status == "KILLED"

    again = ui.run_deployment("pipeline", recipe_file=recipe)
    ui.wait_for_state(again, "COMPLETED")
    RunPage(page, ui.prefect, again).find_log_line("continuing from step")
    assert ui.tracking_run(again).info.status == "FINISHED"
