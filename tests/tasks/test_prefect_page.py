"""When Prefect is unavailable, what we show there costs one line in the log. (tests/flows/test_pipeline.py tests the pages.)"""

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import suppress

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


FLOW_RUN = "00000000-0000-0000-0000-000000000001"


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return sum(
        "Prefect did not accept an artifact for the run's page; the run continues." in message for message in caplog.messages)


@pytest.mark.usefixtures("nobody_at_home")
def test_a_server_that_is_away_costs_a_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XFT_MLFLOW_UI_URL", "http://127.0.0.1:5000")
    show_table(FLOW_RUN, "comparison", [{"model": "base"}], "models", logger)
    show_markdown(FLOW_RUN, "report", "# Report", "what it says", logger)
    show_link("sft_moe", "1", "run", logger)
    assert warnings(caplog) == 3


def test_no_link_where_mlflow_has_no_pages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XFT_MLFLOW_UI_URL", "XFT_ONE_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
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


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the content that is shown for a run."""
    found: list[str] = []
    monkeypatch.setattr("tasks.prefect_page._show_of_run", lambda run, kind, key, data, *rest: found.append(data))
    return found


def test_a_table_has_the_columns_of_all_rows(shown: list[str]) -> None:
    rows: list[dict[str, object]] = [{"model": "base", "nll": math.nan}, {"model": "merged", "pass@1 %": "50.0"}]
    show_table(FLOW_RUN, "scores", rows, "models", logger)
    assert [json.loads(item) for item in shown] == [[
        {"model": "base", "nll": None, "pass@1 %": None}, {"model": "merged", "nll": None, "pass@1 %": "50.0"}]]


def test_markdown_has_no_front_matter_and_its_pictures_where_pages_have_one_address(
    shown: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "---\nlicense: x\n---\n\n# Card\n\n![Loss](plots/loss.png)\n"
    monkeypatch.delenv("XFT_MLFLOW_UI_URL", raising=False)
    monkeypatch.delenv("XFT_ONE_ADDRESS", raising=False)
    show_markdown(FLOW_RUN, "card", text, "what it is", logger, "a1")
    monkeypatch.setenv("XFT_ONE_ADDRESS", "1")
    show_markdown(FLOW_RUN, "card", text, "what it is", logger, "a1")
    assert [item.strip() for item in shown] == [
        "# Card", "# Card\n\n![Loss](/mlflow/get-artifact?path=report%2Fplots%2Floss.png&run_uuid=a1)"]


@pytest.mark.parametrize(
    ("fails", "percent", "words"), [(False, 100.0, "Done: sft-moe."), (True, 60.0, "Ended early")])
def test_progress_that_ends_says_so(
    fails: bool, percent: float, words: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[tuple[float, str]] = []
    monkeypatch.setattr(Progress, "_publish", lambda self, percent, text: said.append((percent, text)))
    with suppress(ValueError), Progress("sft_moe", logger, poll_seconds=0.02) as progress:
        progress.line("sft 3/5 (60%), loss 1.0, about 10 s left")
        if fails:
            raise ValueError
    assert said[-1][0] == percent and said[-1][1].startswith(words)
