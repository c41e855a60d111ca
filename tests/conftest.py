"""Settings for every test: no network, no telemetry, one thread (tiny models are slower with more), and the default SIGINT
handler. A shell that starts tests in the background ignores SIGINT in them, and in the processes they start and interrupt."""

import os
import signal

os.environ |= {
    "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

signal.signal(signal.SIGINT, signal.default_int_handler)
