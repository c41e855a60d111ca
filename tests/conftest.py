"""Settings for every test: no network, no telemetry, one thread (tiny models are slower with more), and the default SIGINT
handler. A shell that starts tests in the background ignores SIGINT in them, and in the processes they start and interrupt."""

import os
import signal
from collections.abc import Iterator

import pytest

os.environ |= {
    "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def signals_restored() -> Iterator[None]:
    """Undo what a test changed in this process's signal handlers: processes that later tests start would inherit it."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler and handler is not None:
            signal.signal(number, handler)
