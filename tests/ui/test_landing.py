"""Where users land: version 1 of Prefect's pages and MLflow's machine learning pages, from any port. No page and no browser
request leaves this machine."""

import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Page, expect

from tasks import mlflow_pages
from tests.flows.conftest import RECIPE, REPOSITORY
from tests.ui.browser import RunPage, another_chromium, new_page
from tests.ui.netlog import left_the_machine
from tests.ui.tunnel import Tunnel
from tests.ui.xft_ui import XftUi

pytestmark = pytest.mark.slow

PREFECT_PAGES = [
    "/", "/dashboard", "/runs", "/flows", "/deployments", "/work-pools", "/blocks", "/blocks/catalog", "/variables",
    "/automations", "/automations/create", "/concurrency-limits", "/events", "/artifacts", "/settings",
    "/v2/dashboard"]
MLFLOW_PAGES = ["/", "/#/", "/#/models?workflowType=machine_learning", "/#/settings", "/#/experiments", "/#/prompts",
                "/#/gateway"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("landing") / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"seed": 71}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run_id(ui: XftUi, recipe: Path) -> str:
    """Run the recipe; return the ID of the finished run."""
    started = ui.run_deployment("pipeline", recipe_file=str(recipe))
    ui.wait_for_state(started, "COMPLETED")
    return started


def test_prefect_opens_in_its_first_version_without_advertisements(page: Page, ui: XftUi) -> None:
    page.goto(ui.prefect)
    expect(page).to_have_url(f"{ui.prefect}/dashboard")
    expect(page.locator(".context-sidebar, nav").first).to_be_visible()
    page.wait_for_timeout(3000)
    for words in ("Prefect Cloud", "Upgrade", "Ready to scale", "V2 UI"):
        expect(page.get_by_text(words)).to_have_count(0)


def test_links_to_mlflow_open_among_runs_and_models(page: Page, ui: XftUi, run_id: str) -> None:
    run = ui.tracking_run(run_id)
    link = mlflow_pages.run_page("/mlflow", run.info.experiment_id, run.info.run_id)
    assert f"({link})" in ui.artifact(run_id, "start-here")
    page.goto(ui.prefect + link)
    expect(page.get_by_text(str(run.info.run_name)).first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Model registry").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Description", exact=True).first).to_be_visible()
    pictures = page.locator("img[src*='plots']").filter(visible=True)
    expect(pictures.first).to_be_attached()
    for picture in pictures.all():  # in the run's report
        page.wait_for_function("picture => picture.complete && picture.naturalWidth > 100", arg=picture.element_handle())
    page.goto(mlflow_pages.first_page(ui.mlflow))
    expect(page.get_by_text("Model registry").first).to_be_visible(timeout=60_000)


@pytest.mark.parametrize("path", ["", "/#/experiments", "/#/experiments?workflowType=machine_learning"])
def test_experiments_are_opened_among_runs_and_models_from_mlflows_own_lists(
    browser: Browser, ui: XftUi, run_id: str, path: str,
) -> None:
    run = ui.tracking_run(run_id)
    name = ui.tracking().get_experiment(run.info.experiment_id).name
    page = new_page(browser)  # a page without storage from other pages
    page.goto(ui.mlflow + path)
    page.get_by_role("link", name=name, exact=True).first.click()
    expect(page.get_by_role("link", name=str(run.info.run_name)).first).to_be_visible(timeout=60_000)
    page.goto(f"{ui.mlflow}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")  # an address that others may send
    expect(page.get_by_text("Model registry").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Description", exact=True).first).to_be_visible()
    page.close()


def test_a_run_beside_it_says_where_it_is_shown(page: Page, ui: XftUi, recipe: Path, run_id: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", str(recipe), "--again"], env=ui.environment(), cwd=REPOSITORY,
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first = f"  Prefect  {ui.prefect}\n  MLflow   {ui.mlflow}/#/experiments?workflowType=machine_learning\n"
    assert done.stdout.startswith(first)
    shown = re.search(r"^  look     (\S+)$", done.stdout, flags=re.MULTILINE)
    assert shown is not None
    page.goto(shown[1])
    expect(page.get_by_text("Model registry").first).to_be_visible(timeout=60_000)
    assert ui.runs()[-1]["deployment_id"] is None  # Prefect's pages show it too
    assert ui.secret[1] not in done.stdout + done.stderr
    nothing_left = subprocess.run([*done.args[:-1]], env=ui.environment(), cwd=REPOSITORY, capture_output=True, text=True)
    assert nothing_left.stdout.startswith(first) and f"  look     {shown[1]}\n" in nothing_left.stdout


def test_a_table_begins_with_the_columns_that_matter(browser: Browser, ui: XftUi, run_id: str) -> None:
    run = ui.tracking_run(run_id)
    page = new_page(browser)  # a page without storage from other pages
    for base in (ui.mlflow, f"{ui.prefect}/mlflow"):
        page.goto(f"{base}/")
        page.goto(mlflow_pages.experiment_page(base, run.info.experiment_id))
        for column in ("upcycle.num_experts", "merged/plus_pass_at_1"):
            expect(page.get_by_role("columnheader").filter(has_text=column).first).to_be_attached(timeout=60_000)
        page.goto("about:blank")
    page.close()


def test_models_are_ranked(page: Page, ui: XftUi, run_id: str) -> None:
    run = ui.tracking_run(run_id)
    page.goto(mlflow_pages.models_page(ui.mlflow, run.info.experiment_id))
    for kind in ("base", "moe", "merged"):
        expect(page.get_by_text(f"tiny-{kind}").first).to_be_visible(timeout=60_000)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_pages_work_through_a_tunnel(browser: Browser, ui: XftUi, run_id: str, host: str) -> None:
    tunnels = {name: Tunnel(int(getattr(ui, name).rpartition(":")[2])) for name in ("prefect", "mlflow")}
    page = new_page(browser)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda websocket: asked.append(websocket.url))
    prefect, mlflow = (f"http://{host}:{tunnel.port}" for tunnel in tunnels.values())
    RunPage(page, prefect, run_id).expect_state("Completed", seconds=30)
    run = ui.tracking_run(run_id)
    page.goto(mlflow_pages.run_page(mlflow, run.info.experiment_id, run.info.run_id))
    expect(page.get_by_text(str(run.info.run_name)).first).to_be_visible(timeout=60_000)
    # Links work in both directions through Prefect's port only.
    start = RunPage(page, prefect, run_id)
    start.open_artifact("start-here")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Numbers, curves and files").first.click()
    numbers = opened.value
    expect(numbers.get_by_text(str(run.info.run_name)).first).to_be_visible(timeout=60_000)
    assert numbers.url.startswith(f"{prefect}/mlflow/")
    with numbers.expect_popup() as opened:
        numbers.get_by_role("link", name="Log, graph and artifacts in Prefect").first.click()
    expect(opened.value).to_have_url(re.compile(rf"{prefect}/runs/flow-run/{run_id}"))
    for each in (opened.value, numbers, page):
        each.close()
    for tunnel in tunnels.values():
        tunnel.close()
    own = re.compile(rf"(http|ws)://{re.escape(host)}:({'|'.join(str(tunnel.port) for tunnel in tunnels.values())})/")
    assert [address for address in asked if not own.match(address) and not address.startswith(("data:", "blob:"))] == []


def test_nothing_leaves_the_machine(browser: Browser, ui: XftUi, run_id: str, tmp_path: Path) -> None:
    record = tmp_path / "netlog.json"
    run = ui.tracking_run(run_id)
    addresses = [ui.prefect + path for path in PREFECT_PAGES] + [ui.mlflow + path for path in MLFLOW_PAGES]
    addresses += [f"{ui.prefect}/runs/flow-run/{run_id}",
                  mlflow_pages.run_page(ui.mlflow, run.info.experiment_id, run.info.run_id),
                  mlflow_pages.compare_page(ui.mlflow, run.info.experiment_id, [run.info.run_id])]
    with another_chromium(browser, f"--log-net-log={record}") as recorded:
        page = new_page(recorded)
        for address in addresses:
            page.goto("about:blank")  # two addresses that differ only after the # are the same page
            page.goto(address)
            page.wait_for_timeout(2000)
            assert page.locator("body").inner_text().strip(), address
        page.goto(f"{ui.prefect}/runs/flow-run/{run_id}")
        RunPage(page, ui.prefect, run_id).open_artifacts()
        page.wait_for_timeout(5000)  # time for the page's periodic requests
    assert left_the_machine(record) == set()


@pytest.fixture
def leaky_page() -> Iterator[str]:
    """A page on this machine that requests a picture, a connection and data from another machine."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<img src=http://picture.example/x.png>"
                             b"<script>fetch('http://192.0.2.1/x'); new WebSocket('ws://socket.example/x')</script>")

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_record_shows_what_would_leave(browser: Browser, leaky_page: str, tmp_path: Path) -> None:
    record = tmp_path / "netlog.json"
    with another_chromium(browser, f"--log-net-log={record}") as recorded:
        page = new_page(recorded)
        page.goto(leaky_page)
        page.wait_for_timeout(3000)
    found = " ".join(left_the_machine(record))
    for place in ("picture.example", "socket.example", "192.0.2.1"):
        assert place in found


