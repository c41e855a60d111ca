"""What a run's page in Prefect shows besides the log: where to start, progress of a running stage, links to MLflow, tables and
Markdown. Artifacts about the entire run belong to the run rather than to a task: its page shows them first, the newest on top.

None of this may fail or delay a run. If Prefect does not accept an artifact, the log gets a line.
"""

import contextvars
import json
import math
import re
import threading
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_link_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import State

from tasks import mlflow_pages
from tasks.prefect_log import Logger, reason
from tasks.settings import settings
from xft_core.errors import XftError
from xft_core.reporting.page import PAGE

POLL_SECONDS = 2.0
WAIT_AT_END_SECONDS = 10.0
PROGRESS_LINE = re.compile(r"[a-z]+ (\d+)/(\d+)\b")  # "sft 120/400 (30%), ...": see xft_core.runtime.progress


def show_link(role: str, experiment_id: str, run_id: str | None, logger: Logger) -> None:
    """Show a link to an MLflow run, if the address of MLflow's web pages is known."""
    pages = settings().mlflow_links
    if pages is None or run_id is None:
        return
    address, words = mlflow_pages.run_page(pages, experiment_id, run_id), _words(role)
    _tolerate(logger, lambda: create_link_artifact(
        address, link_text=f"MLflow run of {words}", key=f"mlflow-{words}",
        description=f"Parameters, curves and files of {words} in MLflow"))


def show_run_address(flow_run_id: str, key: str, address: str, text: str, description: str, logger: Logger) -> None:
    """Show a link to any page, as an artifact of the entire run."""
    _show_of_run(flow_run_id, "markdown", key, f"[{text}]({address})", description, logger)


def show_table(flow_run_id: str, key: str, rows: list[dict[str, Any]], description: str, logger: Logger) -> None:
    """Show rows as a table with the columns of all rows: Prefect's page only shows the columns of the first row."""
    columns = dict.fromkeys(column for row in rows for column in row)
    whole = [{column: _finite(row.get(column)) for column in columns} for row in rows]
    _show_of_run(flow_run_id, "table", key, json.dumps(whole), description, logger)


def show_markdown(
    flow_run_id: str, key: str, text: str, description: str, logger: Logger, mlflow_run_id: str | None = None,
) -> None:
    """Show Markdown without its YAML front matter. Its pictures and files come from the report of ``mlflow_run_id`` if MLflow's
    pages have Prefect's address; otherwise they are omitted."""
    pages, text = settings().mlflow_links, without_front_matter(text)
    if mlflow_run_id and pages and pages.startswith("/"):  # the page's policy blocks pictures from other addresses
        text = mlflow_pages.with_files(text, mlflow_run_id, pages=f"{pages}/")
    else:
        text = without_files(text)
    _show_of_run(flow_run_id, "markdown", key, text, description, logger)


def without_front_matter(text: str) -> str:
    """Return Markdown without the YAML front matter, for programs, that some files begin with."""
    return text.split("---\n", 2)[2].lstrip() if text.startswith("---\n") else text


def without_files(text: str) -> str:
    """Return Markdown without pictures and links to accompanying files, which MLflow has and Prefect does not."""
    text = text.replace(f"[{PAGE}]({PAGE})", f"`report/{PAGE}` of the run in MLflow")
    return "\n".join(line for line in text.splitlines() if not line.startswith("![")) + "\n"


def _show_of_run(flow_run_id: str, kind: str, key: str, data: str, description: str, logger: Logger) -> None:
    def create() -> None:
        with get_client(sync_client=True) as api:
            api.create_artifact(ArtifactCreate(
                type=kind, key=key, data=data, description=description, flow_run_id=UUID(flow_run_id)))

    _tolerate(logger, create)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no such numbers


def percent(line: str) -> float | None:
    """Return the progress in a line of a stage's log, 0 to 100; None for a line without it."""
    found = PROGRESS_LINE.match(line)
    return 100 * min(1.0, int(found[1]) / max(int(found[2]), 1)) if found else None


class Progress:
    """While its ``with`` block runs, a thread shows the progress that the stage's log reports. A stage that does not count its
    steps shows nothing."""

    def __init__(self, role: str, logger: Logger, poll_seconds: float = POLL_SECONDS) -> None:
        self._role, self._logger, self._poll_seconds = role, logger, poll_seconds
        self._done = threading.Event()
        self._failed = False
        self._latest: tuple[float, str] | None = None
        self._shown: tuple[float, str] | None = None
        self._artifact: UUID | None = None
        context = contextvars.copy_context()  # tells Prefect to which run this artifact belongs
        self._thread = threading.Thread(target=context.run, args=(self._follow,), name=f"progress of {role}", daemon=True)

    def line(self, text: str) -> None:
        """Take a line of the stage's log."""
        if (done := percent(text)) is not None:
            self._latest = done, text

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._latest is not None:
            done, line = self._latest
            self._latest = (
                (100.0, f"Done: {_words(self._role)}.") if kind is None else (done, f"Ended early, at: {line}"))
        self._done.set()
        self._thread.join(WAIT_AT_END_SECONDS)  # a hanging server must not delay a cancelled run

    def _follow(self) -> None:
        while not self._done.wait(self._poll_seconds):
            self._show()
        self._show()

    def _show(self) -> None:
        latest = self._latest
        if latest is None or latest == self._shown or self._failed:
            return
        self._failed = not _tolerate(self._logger, lambda: self._publish(*latest))
        self._shown = latest

    def _publish(self, percent: float, text: str) -> None:
        if self._artifact is None:
            key = f"progress-{_words(self._role)}"
            self._artifact = cast(UUID, create_progress_artifact(percent, key=key, description=text))
        else:
            update_progress_artifact(self._artifact, percent, description=text)


def _words(role: str) -> str:
    return role.replace("_", "-").lower()


def _tolerate(logger: Logger, call: Callable[[], object]) -> bool:
    try:
        call()
        return True
    except Exception as error:
        logger.warning("Prefect did not accept an artifact for the run's page; the run continues. %s", reason(error))
        return False


def reason_of(state: State[Any]) -> str:
    """Return why a run did not complete, in readable form."""
    error = state.result(raise_on_failure=False)
    return str(error) if isinstance(error, XftError) else str(state.message)
