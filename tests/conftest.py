"""What holds for every test: no network, no telemetry, one thread (tiny models are slower with more), and SIGINT as a
terminal sends it: a shell that starts the tests in the background has it ignored, also in what tests start and interrupt."""

import os
import signal

os.environ |= {
    "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

signal.signal(signal.SIGINT, signal.default_int_handler)
