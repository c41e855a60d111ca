"""Take screenshots for the README and docs: Prefect's form, a finished run, MLflow's compare page and charts.

    python -m tests.ui.screenshots HOME DIRECTORY

HOME is an XFT_HOME with a finished pipeline run and a finished comparison (`xft run`, `xft compare`). The script starts an
``xft ui`` for it, shows the newest of both, and stops it.
"""

import re
import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.ui.browser import Form, RunPage, chromium, new_page
from tests.ui.xft_ui import XftUi

LIMIT_BYTES = 300_000


def main(home: Path, directory: Path) -> None:
    """Serve ``home`` and write the screenshots to ``directory``."""
    ui = XftUi(home)
    try:
        ui.start()
        with chromium() as browser:
            page = new_page(browser)
            take_form(page, ui, directory / "form.png")
            take_run(page, ui, directory / "run.png")
            take_comparison(page, ui, directory / "comparison.png")
            take_charts(page, ui, directory / "charts.png")
        ui.end()
    finally:
        ui.close()
    for path in sorted(directory.glob("*.png")):
        assert path.stat().st_size < LIMIT_BYTES, f"{path} is {path.stat().st_size} bytes"


def take_form(page: Page, ui: XftUi, path: Path) -> None:
    form = Form(page, ui.prefect, ui.deployment_id("pipeline"))
    form.top("recipe_file").evaluate("element => element.scrollIntoView()")
    page.wait_for_timeout(500)
    page.screenshot(path=path)


def take_run(page: Page, ui: XftUi, path: Path) -> None:
    run = RunPage(page, ui.prefect, newest(ui, "pipeline"))
    run.expect_state("Completed", seconds=30)
    run.open_tab("Artifacts")
    page.wait_for_timeout(4000)  # the graph lays itself out
    page.screenshot(path=path)


def take_comparison(page: Page, ui: XftUi, path: Path) -> None:
    run_id = newest(ui, "compare")
    page.goto(ui.link(run_id, "compare-in-mlflow"))
    expect(page.get_by_text(re.compile(r"Comparing [1-9]\d* Runs"))).to_be_visible(timeout=60_000)
    page.wait_for_timeout(2000)
    page.screenshot(path=path)


def take_charts(page: Page, ui: XftUi, path: Path) -> None:
    page.set_viewport_size({"width": 1700, "height": 900})
    page.goto(ui.link(newest(ui, "compare"), "charts-in-mlflow"))
    expect(page.get_by_text("moe/loss").first).to_be_visible(timeout=60_000)
    page.wait_for_timeout(2000)
    page.screenshot(path=path)


def newest(ui: XftUi, flow: str) -> str:
    """Return a flow's last finished run, preferably one that is not a variant of a comparison."""
    body = {"sort": "END_TIME_DESC", "flows": {"name": {"any_": [flow]}}}
    for alone in ({"parent_task_run_id": {"is_null_": True}}, {}):
        found = ui.api("/flow_runs/filter", body | {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}, **alone}})
        if found:
            return str(found[0]["id"])
    sys.exit(f"{ui.home} holds no finished run of {flow}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]))
