"""End ``xft ui`` in every way during a training: nothing continues without it, and its messages are true."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.ui.browser import RunPage
from tests.ui.xft_ui import XftUi, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def own_ui(tmp_path: Path) -> Iterator[XftUi]:
    """An ``xft ui`` that a test may end."""
    made = XftUi(tmp_path / "home")
    yield made
    made.close()


def test_a_killed_one_leaves_nothing_and_its_run_goes_on_after_the_next_start(
    page: Page, own_ui: XftUi, write_recipe: Callable[..., Path],
) -> None:
    own_ui.start()
    recipe = write_recipe(seed=41, max_steps=150, epochs=150, checkpoint_steps=10)
    run_id = own_ui.run_deployment("pipeline", recipe_file=str(recipe))
    checkpoints = own_ui.wait_for_checkpoints()
    assert own_ui.process is not None
    own_ui.process.kill()
    own_ui.process.wait()
    started = time.monotonic()
    own_ui.start()  # right away: it waits until the other one's processes have ended
    assert own_ui.run(run_id)["state_type"] == "CRASHED"
    assert time.monotonic() - started < 120
    assert list(checkpoints.glob("checkpoint-*"))
    assert len(own_ui.processes("flows.local.prefect_server")) == 1
    assert not own_ui.processes("xft_core\0sft")

    run = RunPage(page, own_ui.prefect, run_id)
    run.expect_state("Crashed", seconds=20)
    run.press("Retry")
    own_ui.wait_for_state(run_id, "COMPLETED")
    assert any("continuing from step" in line for line in own_ui.log_lines(run_id))
    assert own_ui.tracking_run(run_id).info.status == "FINISHED"

    another = subprocess.run(
        own_ui.command("--prefect-port", "1", "--mlflow-port", "2"), cwd=own_ui.home, env=own_ui.environment(),
        capture_output=True, text=True)
    assert another.returncode == 2
    assert f"already runs over '{own_ui.home}': {own_ui.prefect}." in another.stderr


def test_an_impatient_interrupt_cancels_what_runs(own_ui: XftUi, write_recipe: Callable[..., Path]) -> None:
    own_ui.start()
    recipe = write_recipe(seed=51, max_steps=150, epochs=150, checkpoint_steps=10)
    run_id = own_ui.run_deployment("pipeline", recipe_file=str(recipe))
    own_ui.wait_for_checkpoints()
    assert own_ui.end(signal.SIGINT, times=3) == 0
    assert not own_ui.processes()
    assert "Traceback" not in own_ui.output()
    own_ui.start()
    assert own_ui.run(run_id)["state_type"] == "CANCELLED"
    assert own_ui.end(signal.SIGTERM) == 0
    assert not own_ui.processes()


def test_ended_while_it_starts(own_ui: XftUi) -> None:
    own_ui.launch()
    wait_for(lambda: own_ui.processes("flows.local.prefect_server"), 60, "nothing was started")
    assert own_ui.end(signal.SIGHUP) == 0
    assert not own_ui.processes()
    assert "Traceback" not in own_ui.output()


def test_a_port_that_is_taken_is_told(own_ui: XftUi) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        own_ui.mlflow = f"http://127.0.0.1:{port}"
        own_ui.launch()
        assert own_ui.process is not None
        assert own_ui.process.wait(30) == 2
    assert own_ui.output() == f"error: Port {port} for MLflow is taken. Choose another: xft ui --mlflow-port NUMBER.\n"
    assert not own_ui.processes()
