"""The initial state that MLflow's pages get from us. tests/ui/test_landing.py tests that the pages use it."""

import json
import re

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tasks.servers.mlflow_server import MachineLearningFirst, with_beginnings

PAGE = "<html><head><title>MLflow</title></head></html>"


def client_of(prefect_ui: str = "") -> TestClient:
    async def rest(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.url.path)

    app = Starlette(routes=[Route("/{path:path}", rest)])
    return TestClient(MachineLearningFirst(app, PAGE, lambda: {"7": '{"a": 1}'}, prefect_ui), follow_redirects=False)


def test_a_table_that_nobody_arranged_begins_with_what_the_experiment_says() -> None:
    page = with_beginnings(PAGE, {"7": json.dumps({"selectedColumns": ["params.`a</script>`"]})})
    assert page.startswith("<html><head><script>") and page.count("</script>") == 2  # no name can end the script
    kept = json.loads(re.search(r"Object\.entries\((.*)\)\) if", page)[1])  # type: ignore[index]
    key, = kept
    assert key == 'MLflowLocalStorage-1.1-ExperimentPage-["7"]-ReactComponentState'  # the key that MLflow's pages use
    assert json.loads(kept[key]) == {"selectedColumns": ["params.`a</script>`"]}
    assert "if (!localStorage.getItem(key))" in page


def test_only_the_first_page_is_changed_and_links_to_prefects_runs_lead_there() -> None:
    with client_of("http://127.0.0.1:4200") as client:
        assert "ExperimentPage" in client.get("/").text
        assert client.get("/ajax-api").text == "/ajax-api"
        answer = client.get("/runs/flow-run/0123-ab")
        assert (answer.status_code, answer.headers["location"]) == (307, "http://127.0.0.1:4200/runs/flow-run/0123-ab")
        assert client.get("/runs/flow-run/..%2F..").status_code == 200
    with client_of() as client:
        assert client.get("/runs/flow-run/0123-ab").text == "/runs/flow-run/0123-ab"
