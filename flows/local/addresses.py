"""The addresses of the servers of ``xft ui``, in small files in XFT_HOME that exist while they run."""

import urllib.request
from pathlib import Path

from tasks.mlflow_pages import first_page
from tasks.settings import BESIDE
from xft_core.files.disk import file_lock

HOST = "127.0.0.1"
# The public file holds the address of Prefect's pages for other machines, if it differs.
ADDRESS_FILE, MLFLOW_FILE, PUBLIC_FILE, LOCK_FILE = "prefect-api", "mlflow-ui", "public-address", "ui.lock"


def _is_served(home: Path) -> bool:
    """Whether an ``xft ui`` holds the lock of this home."""
    try:
        with file_lock(home / "locks" / LOCK_FILE, wait=False, shared=True, create=False) as lock:
            return lock is None
    except OSError:  # no lock file
        return False


def running_api(home: Path) -> str | None:
    """Return the address of the Prefect API that ``xft ui`` runs for this home, or None."""
    return _answering(home, ADDRESS_FILE)


def running_mlflow(home: Path) -> str | None:
    """Return the address of the MLflow pages that ``xft ui`` shows for this home, or None."""
    return _answering(home, MLFLOW_FILE)


def pages(home: Path, api: str) -> dict[str, str]:
    """Return the addresses of Prefect's and MLflow's pages by name, if ``xft ui`` runs for this home and its API is ``api``."""
    if api != running_api(home):
        return {}
    if public := public_address(home):
        return shown_pages(public, f"{public}{BESIDE}")
    return shown_pages(api.removesuffix("/api"), running_mlflow(home))


def shown_pages(prefect: str, mlflow: str | None) -> dict[str, str]:
    """Return the addresses to open first, by name."""
    return {"Prefect": prefect} | ({"MLflow": first_page(mlflow)} if mlflow else {})


def public_address(home: Path) -> str | None:
    """Return the address of Prefect's pages for other machines, as given to the running ``xft ui``; None if it is the same."""
    try:
        return (home / PUBLIC_FILE).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _answering(home: Path, name: str) -> str | None:
    # The file may be copied from another home, and another user who wants our secret may now listen on that port.
    if not _is_served(home):
        return None
    try:
        address = (home / name).read_text(encoding="utf-8").strip()
        with urllib.request.urlopen(f"{address}/health", timeout=2):
            return address
    except (OSError, ValueError):
        return None
