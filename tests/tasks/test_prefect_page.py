"""What is shown in Prefect costs a line in the log when Prefect is away. (That it is shown: tests/flows/test_pipeline.py.)"""

import logging
import time
from collections.abc import Iterator

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks import prefect_page
from tasks.prefect_page import Progress, show_link, show_markdown, show_table
from xft_core.benchmarks import progress as problems
from xft_core.runtime.progress import describe_progress

logger = logging.getLogger("tests.run_page")


@pytest.fixture
def nobody_at_home() -> Iterator[None]:
    with temporary_settings(updates={PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return sum("Prefect did not take something to show; the work goes on." in message for message in caplog.messages)


@pytest.mark.usefixtures("nobody_at_home")
def test_a_server_that_is_away_costs_a_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XFT_MLFLOW_UI_URL", "http://127.0.0.1:5000")
    show_table("comparison", [{"model": "base"}], "models", logger)
    show_markdown("report", "# Report", "what it says", logger)
    show_link("sft_moe", "1", "run", logger)
    assert warnings(caplog) == 3


def test_no_link_where_mlflow_has_no_pages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XFT_MLFLOW_UI_URL", raising=False)
    show_link("sft_moe", "1", "run", logger)
    assert caplog.messages == []


@pytest.mark.usefixtures("nobody_at_home")
def test_progress_gives_up_after_one_line_and_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()
    with Progress("sft_moe", logger, poll_seconds=0.02) as progress:
        for step in range(1, 6):
            progress.line(f"sft {step}/5 ({step / 5:.0%}), loss 1.0")
            time.sleep(0.1)
    assert warnings(caplog) == 1
    assert time.monotonic() - started < prefect_page.WAIT_AT_END_SECONDS


def test_the_lines_of_all_stages_that_count_are_understood(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(problems, "SECONDS_BETWEEN_LINES", 0)
    caplog.set_level(logging.INFO)
    counted = problems.Progress(logger, "generate", 4)
    counted.advance(1)
    lines = [describe_progress("sft", 3, 12, "loss 1.0"), describe_progress("mix", 12, 12, "loss 1.0"), *caplog.messages]
    assert [prefect_page.percent(line) for line in lines] == [25, 100, 25]
    for other in ("prepare: 2200 rows read, 54 dropped", "sft: held-out loss 6.6 before", "merge: done in 1.0 s", "1/2"):
        assert prefect_page.percent(other) is None


def test_a_table_has_the_columns_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[dict[str, object]]] = []
    monkeypatch.setattr("tasks.prefect_page.create_table_artifact", lambda rows, **_: shown.append(rows))
    show_table("scores", [{"model": "base"}, {"model": "merged", "pass@1 %": "50.0"}], "models", logger)
    assert shown == [[{"model": "base", "pass@1 %": None}, {"model": "merged", "pass@1 %": "50.0"}]]
