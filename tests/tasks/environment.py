"""A separate home for a test session, set before ``tasks`` is imported, so that no user files are read or written."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

HOME = Path(tempfile.mkdtemp(prefix="xft-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "XFT_COMPUTE_SLOTS", "XFT_MLFLOW_COPY_LIMIT_MB", "XFT_STORE",
             "XFT_S3_ENDPOINT_URL"):
    os.environ.pop(name, None)
os.environ["XFT_HOME"] = str(HOME)
os.environ["PREFECT_HOME"] = str(HOME / "prefect")
os.environ["PREFECT_LOCAL_STORAGE_PATH"] = str(HOME / "prefect-storage")
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"
