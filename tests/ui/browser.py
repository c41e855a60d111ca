"""The pages as a user sees them: Prefect's form and run page, MLflow's tables. Uses Debian's Chromium, headless."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
# The sandbox needs rights that root and containers lack; the rest keeps Chromium from calling home.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
expect.set_options(timeout=20_000)  # a machine that is also training renders pages slowly
CLICKS, SECONDS_TO_ASK = 3, 10
WINDOW: Any = {"width": 1280, "height": 900}


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def another_chromium(browser: Browser, flag: str) -> Iterator[Browser]:
    """Start another browser with an additional command-line flag."""
    started = browser.browser_type.launch(executable_path=CHROMIUM, headless=True, args=[*FLAGS, flag])
    try:
        yield started
    finally:
        started.close()


def new_page(browser: Browser) -> Page:
    """Return a page in a new context, without storage from other pages."""
    return browser.new_context(viewport=WINDOW).new_page()


class Form:
    """Prefect's form of a deployment's parameters."""

    def __init__(self, page: Page, prefect: str, deployment_id: str) -> None:
        """Go there as a user does: the deployment's page, Run, Custom run."""
        self.page = page
        page.goto(f"{prefect}/deployments/deployment/{deployment_id}")
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_text("Custom Run").click()
        expect(self.top("seed")).to_be_visible()

    def top(self, name: str) -> Locator:
        """Find a parameter of the flow, which may be a section."""
        return _labelled(self.page.locator("form"), f"{name} (Optional)")

    def field(self, section: str, name: str) -> Locator:
        """Find a field of a section by its label: num_experts is shown as Num Experts."""
        return _labelled(self.top(section), f"{name.replace('_', ' ').title()} (Optional)")

    def value(self, section: str, name: str) -> str:
        """Return what the field shows."""
        body = self.field(section, name).locator("> .p-label__body")
        if (pick := body.locator(".p-select-button__value")).count():
            return pick.inner_text()
        return body.locator("input, textarea").input_value()

    def help(self, section: str, name: str) -> str:
        return self.field(section, name).locator("> .p-label__header .p-label__description").inner_text()

    def choices(self, section: str, name: str) -> list[str]:
        """Return the options of a pick list."""
        found = self._options(self.field(section, name)).all_inner_texts()
        self.page.keyboard.press("Escape")
        return [item.strip() for item in found]

    def fill(self, section: str | None, name: str, value: str | int | float | bool) -> None:
        """Type, pick or switch, depending on the field."""
        body = (self.field(section, name) if section else self.top(name)).locator("> .p-label__body")
        if isinstance(value, bool):
            switch = body.get_by_role("switch")
            if (switch.get_attribute("aria-checked") == "true") != value:
                switch.click()
            return
        if body.locator(".p-select-button__control").count():
            self._options(body).get_by_text(str(value), exact=True).click()
            return
        if (kinds := body.locator(".p-button-group__button")).count():  # "int | None": one button each
            kinds.first.click()
        body.locator("input, textarea").fill(str(value))

    def _options(self, scope: Locator) -> Locator:
        # With the keyboard: with the mouse, Prefect's list loses focus to its own search field and closes at once.
        scope.locator(".p-select-button__control").press("ArrowDown")
        options = self.page.locator(".p-select-options .p-select-option")
        expect(options.first).to_be_visible()
        return options

    def add_item(self, name: str, text: str) -> None:
        """Append to a list of texts."""
        lines = self.top(name).locator("textarea")
        number = lines.count()
        self.top(name).get_by_role("button", name="Add item").click()
        expect(lines).to_have_count(number + 1)
        lines.nth(number).fill(text)

    def change_items(self, name: str, texts: list[str]) -> None:
        """Overwrite the first items of a list of texts and delete the others."""
        items = self.top(name).locator(".schema-form-property-array-item")
        for number in range(items.count(), len(texts), -1):
            items.last.get_by_role("button").first.click()
            expect(items).to_have_count(number - 1)
        for index, text in enumerate(texts):
            items.nth(index).locator("textarea").fill(text)

    def submit(self) -> list[str]:
        """Submit the form. Returns the growing list of the server's answers to the page from now on.

        About once in thirty times the page drops the click and sends no request. Then click again, as a user does.
        """
        asked: list[str] = []
        answers: list[str] = []
        self.page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
        self.page.on("response", lambda answer: answers.append(
            f"{answer.status} {answer.request.method} {answer.url}") if answer.request.method == "POST" else None)
        for _ in range(CLICKS):
            self.page.get_by_role("button", name="Submit").click()
            for _ in range(SECONDS_TO_ASK):
                if asked or self.complaints():
                    return answers
                self.page.wait_for_timeout(1000)
        return answers

    def complaints(self) -> list[str]:
        """Return the errors that the page shows: messages at its edge and at fields."""
        return self.page.locator(".p-toast, .p-label__message").all_inner_texts()


def _labelled(scope: Locator, label: str) -> Locator:
    header = f'.schema-form-property:has(> .p-label__header .schema-form-property__label:text-is("{label}"))'
    return scope.locator(header).first


class RunPage:
    """Prefect's page of one run."""

    def __init__(self, page: Page, prefect: str, run_id: str) -> None:
        self.page = page
        page.goto(f"{prefect}/runs/flow-run/{run_id}")

    def expect_state(self, state: str, seconds: float) -> None:
        """Wait for the badge next to the name, which the page updates by itself."""
        expect(self.page.locator(".page-heading .state-badge, .page-heading .p-tag").filter(
            has_text=re.compile(f"^{state}$")).first).to_be_visible(timeout=seconds * 1000)

    def open_tab(self, name: str) -> None:
        self.page.locator(".p-tab").filter(has_text=re.compile(f"^{name}$")).click()

    def open_artifacts(self) -> None:
        """Open the tab and scroll to the cards, because the page only renders what is in view."""
        self.open_tab("Artifacts")
        cards = self.page.locator("#artifacts-content .p-virtual-scroller__bottom").last
        expect(cards).to_be_attached()
        for _ in range(5):
            self.page.mouse.move(700, 700)
            self.page.mouse.wheel(0, 400)
            self.page.wait_for_timeout(200)

    def find_artifact(self, key: str) -> Locator:
        """Scroll from the top to the artifact's name on its card."""
        self.open_tab("Artifacts")
        self.page.mouse.move(700, 700)
        self.page.mouse.wheel(0, -20_000)
        card = self.page.get_by_text(key, exact=True)
        scroll_to(self.page, card)
        expect(card.first).to_be_visible()
        return card.first

    def open_artifact(self, key: str) -> None:
        """Open the artifact's page."""
        self.find_artifact(key).click()

    def find_log_line(self, text: str) -> None:
        """Scroll through the log until the line is visible, because the page only renders what is in view."""
        self.open_tab("Logs")
        rows = self.page.locator(".log-row")
        expect(rows.first).to_be_visible()
        line = rows.filter(has_text=text).first
        for _ in range(60):
            if line.count():
                line.scroll_into_view_if_needed()
                return
            rows.last.scroll_into_view_if_needed()
            self.page.mouse.wheel(0, 600)
            self.page.wait_for_timeout(100)
        raise AssertionError(f"No line of the log says {text!r}.")

    def press(self, button: str) -> None:
        """Press a button in the page's header, Cancel or Retry, and Confirm in the dialog that follows."""
        self.page.locator(".page-heading").get_by_role("button", name=button).click()
        self.page.get_by_role("button", name="Confirm").or_(
            self.page.locator(".p-modal").get_by_role("button", name=button)).last.click()


def scroll_to(page: Page, wanted: Locator) -> None:
    """Scroll as a user does, because pages only render what is in view."""
    for _ in range(20):
        if wanted.count():
            return
        page.mouse.move(700, 700)
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(500)


def open_mlflow_runs(page: Page, mlflow: str, experiment_id: str) -> None:
    """Open MLflow's table of an experiment's runs."""
    page.goto(f"{mlflow}/#/experiments/{experiment_id}/runs?workflowType=machine_learning")
    expect(page.get_by_text(re.compile(r"matching runs?"))).to_be_visible(timeout=60_000)


def open_mlflow_comparison(page: Page, link: str, runs: int) -> None:
    """Open MLflow's page that compares runs."""
    page.goto(link)
    expect(page.get_by_text(f"Comparing {runs} Runs")).to_be_visible(timeout=60_000)
