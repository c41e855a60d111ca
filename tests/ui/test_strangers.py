"""A real page of another origin in the browser that also has our pages open, and a page whose host name was pointed at this
machine. Both servers refuse everything they try, even though the browser has our pages' cookie."""

import http.server
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.ui.browser import another_chromium, new_page
from tests.ui.xft_ui import XftUi

pytestmark = pytest.mark.slow

# All ways to send with and without a preflight request, and to read. Resolves when all have been tried.
ATTACK = """async ([prefect, mlflow]) => {
    const told = [];
    const requests = [
        [prefect + '/api/variables/', {name: 'stolen', value: 1}],
        [mlflow + '/api/2.0/mlflow/experiments/create', {name: 'stolen'}],
        [mlflow + '/ajax-api/2.0/mlflow/experiments/create', {name: 'stolen'}]];
    for (const [address, content] of requests) {
        const body = JSON.stringify(content);
        for (const options of [
            {mode: 'no-cors', headers: {'Content-Type': 'text/plain'}},
            {headers: {'Content-Type': 'text/plain'}},
            {headers: {'Content-Type': 'application/json'}},
            {mode: 'no-cors', body: new Blob([body])},
        ]) try {
            const answer = await fetch(address, {method: 'POST', credentials: 'include', body, ...options});
            told.push(`${answer.type} ${answer.status}`);
        } catch (error) { told.push('refused'); }
        navigator.sendBeacon(address, body);
    }
    for (const address of [prefect + '/', prefect + '/api/admin/version', mlflow + '/'])
        try { told.push((await fetch(address, {credentials: 'include'})).status); } catch (error) { told.push('refused'); }
    told.push(await new Promise(resolve => {
        const socket = new WebSocket(prefect.replace('http', 'ws') + '/api/events/out', ['prefect']);
        socket.onopen = () => resolve('socket open');
        socket.onerror = () => resolve('refused');
    }));
    return told;
}"""


# As plain text it is sent as JSON: {"name": "stolen", "x": "="}
FORM = b"""<form method=post enctype=text/plain><input name='{"name": "stolen", "x": "' value='"}'></form>"""


@pytest.fixture
def foreign_port() -> Iterator[str]:
    """Serve a page of another program on this machine."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(FORM)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def nothing_was_made(ui: XftUi) -> None:
    assert ui.api("/variables/filter") == []
    assert ui.tracking().get_experiment_by_name("stolen") is None


def open_own_pages(page: Page, ui: XftUi) -> None:
    """Open our pages, so that the browser has their cookie, which it would also send with requests from a foreign port."""
    page.goto(ui.prefect)
    expect(page.get_by_text("Dashboard").first).to_be_visible()
    page.goto(ui.mlflow)


def test_a_page_of_another_port(browser: Browser, ui: XftUi, foreign_port: str) -> None:
    page = new_page(browser)
    open_own_pages(page, ui)
    answered: list[int] = []
    page.on("response", lambda answer: answered.append(answer.status) if not answer.url.startswith(foreign_port) else None)
    page.goto(foreign_port)
    told = page.evaluate(ATTACK, [ui.prefect, ui.mlflow])
    assert set(told) <= {"refused", "opaque 0"}
    assert answered and set(answered) == {403}
    for action in (f"{ui.prefect}/api/variables/", f"{ui.mlflow}/ajax-api/2.0/mlflow/experiments/create"):
        page.goto(foreign_port)
        page.evaluate("address => { const form = document.forms[0]; form.action = address; form.submit(); }", action)
        expect(page.get_by_text("are refused")).to_be_visible()
    page.goto(foreign_port)
    page.evaluate("address => { const frame = document.createElement('iframe'); frame.src = address;"
                  "document.body.append(frame); }", ui.prefect)
    expect(page.frame_locator("iframe").get_by_text("are refused")).to_be_visible()
    page.close()
    nothing_was_made(ui)


def test_a_page_whose_name_was_pointed_here(browser: Browser, ui: XftUi) -> None:
    with another_chromium(browser, "--host-resolver-rules=MAP evil.example 127.0.0.1") as fooled:
        page = new_page(fooled)
        open_own_pages(page, ui)
        prefect, mlflow = (address.replace("127.0.0.1", "evil.example") for address in (ui.prefect, ui.mlflow))
        for address in (prefect, mlflow):
            answer = page.goto(address)
            assert answer is not None and answer.status == 403
            told = page.evaluate(ATTACK, [prefect, mlflow])
            assert set(told) <= {"refused", "opaque 0", "basic 403", "cors 403", 403}
    nothing_was_made(ui)


def test_what_was_refused_works_from_the_own_page(page: Page, ui: XftUi) -> None:
    page.goto(ui.prefect)
    expect(page.get_by_text("Dashboard").first).to_be_visible()
    assert page.evaluate("""async () => (await fetch('/api/variables/', {method: 'POST', body: '{"name": "own", "value": 1}',
        headers: {'Content-Type': 'application/json'}})).status""") == 201
    assert page.evaluate("""() => new Promise(resolve => {
        const socket = new WebSocket(`ws://${location.host}/api/events/out`, ['prefect']);
        socket.onopen = () => socket.send('{"type": "auth", "token": null}');
        socket.onmessage = message => resolve(message.data);
        socket.onclose = () => resolve('closed');
    })""") == '{"type":"auth_success"}'
    variable, = ui.api("/variables/filter")
    assert variable["name"] == "own"
    page.evaluate("id => fetch(`/api/variables/${id}`, {method: 'DELETE'})", variable["id"])
