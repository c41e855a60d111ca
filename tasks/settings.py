"""Where things are kept and how much runs at once: read from the environment, with defaults that need nothing set.

    XFT_HOME                 artifacts, databases, locks (default: .xft under the current directory)
    MLFLOW_TRACKING_URI      default: SQLite under XFT_HOME
    PREFECT_API_URL          a Prefect server; without one Prefect's embedded API with its database under XFT_HOME
    XFT_COMPUTE_SLOTS        heavy stages at once on this machine; they share its cores evenly. Default 1 with a GPU (one
                             GPU, one job), 2 without: a tuned model and its baseline train side by side
    XFT_STORE                s3://bucket/prefix: artifacts and checkpoints are kept there too (tasks/storage.py); default: none
    XFT_MLFLOW_UI_URL        address of MLflow's web pages, for links to runs; default: MLFLOW_TRACKING_URI where that is a
                             server, else none. `xft ui` tells its worker
    XFT_DELIVERY_SECONDS     how long a run insists on a server that is away (MLflow, the object store) before it gives up:
                             at its end, and before a stage whose result the object store may have; default: 600
    XFT_RENDEZVOUS           host:port of this machine for sft.num_nodes (docs/scale.md; read where it is used, in
                             xft_core/distributed/launch.py)
    XFT_MLFLOW_COPY_LIMIT_MB largest model, in MB, that is copied into an artifact store that is not this machine's disk
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from xft_core.errors import XftError

DEFAULT_HOME = ".xft"
CREDENTIALS = re.compile(r"://[^/\s'\"]*@")
S3_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*/?")


@dataclass(frozen=True)
class Settings:
    """The settings in force. ``mlflow_ui``: address of MLflow's pages without a closing slash; None when unknown."""

    home: Path
    tracking_uri: str
    compute_slots: int
    copy_limit_mb: int
    delivery_seconds: int = 600
    store: str | None = None
    mlflow_ui: str | None = None

    @property
    def artifacts(self) -> Path:
        """The store: ``<stage>/<key>/`` below it."""
        return self.home / "artifacts"

    @property
    def models(self) -> Path:
        """Models that were fetched from S3 addresses."""
        return self.home / "models"

    @property
    def runs(self) -> Path:
        """One small file for each pipeline run: which artifacts it uses."""
        return self.home / "runs"

    @property
    def locks(self) -> Path:
        """Lock files: compute slots and owners of MLflow runs."""
        return self.home / "locks"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where MLflow keeps files when it is not a server's business."""
        return self.home / "mlflow-artifacts"

    @property
    def tracking_is_local(self) -> bool:
        """Whether MLflow is a database that this process opens itself, rather than a server."""
        return not self.tracking_uri.startswith(("http://", "https://", "databricks"))

    @property
    def tracking_shown(self) -> str:
        """``tracking_uri`` for messages."""
        return without_credentials(self.tracking_uri)

    @property
    def threads_per_slot(self) -> int:
        """Processor cores for each of the heavy stages that run at once."""
        return max(1, len(os.sched_getaffinity(0)) // self.compute_slots)


def settings() -> Settings:
    """The settings as the environment has them now. Raises XftError for a value that cannot be meant."""
    home = _home()
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
    return Settings(
        home=home,
        tracking_uri=tracking_uri,
        compute_slots=_whole_number("XFT_COMPUTE_SLOTS", _default_slots(), least=1, most=1024),
        copy_limit_mb=_whole_number("XFT_MLFLOW_COPY_LIMIT_MB", 1024, least=0, most=10**8),
        delivery_seconds=_whole_number("XFT_DELIVERY_SECONDS", 600, least=0, most=10**6),
        store=_store(),
        mlflow_ui=_mlflow_ui(tracking_uri),
    )


def without_credentials(text: str) -> str:
    """``text`` without the user name and password of any address in it."""
    return CREDENTIALS.sub("://", text)


def set_environment_defaults() -> None:
    """Fix XFT_HOME as an absolute path, put Prefect's files under it, and keep every library from phoning home.

    Only what is not set already is set. Has an effect on Prefect only before Prefect is imported.
    """
    home = settings().home
    os.environ["XFT_HOME"] = str(home)
    if not os.environ.get("PREFECT_API_URL") and not os.environ.get("PREFECT_HOME"):
        os.environ["PREFECT_HOME"] = str(home / "prefect")
        with suppress(OSError):  # Prefect says so itself when it cannot use it; it makes no parents, though
            (home / "prefect").mkdir(parents=True, exist_ok=True)
    defaults = {
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Two cores that are busy need more than Prefect's 20 s for the first start of its embedded API.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",
        # What MLflow says while it makes its tables is of no use to a person.
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        # Links to runs, whose address may hold a password; what we show of it does not.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # A tracking server that is away must not hold a stage up for minutes: we try again ourselves.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        # A Prefect server that is being started again: a request is tried for about eight minutes instead of one.
        "PREFECT_CLIENT_MAX_RETRIES": "8",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _default_slots() -> int:
    has_gpu = Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()  # torch would know, but takes seconds to ask
    return 1 if has_gpu else min(2, len(os.sched_getaffinity(0)))


def _home() -> Path:
    name = os.environ.get("XFT_HOME") or DEFAULT_HOME
    try:
        home = Path(name).expanduser().absolute()
        home.exists()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise XftError(f"XFT_HOME is {name[:200]!r}, which cannot be a directory: {reason}.") from None
    if home.exists() and not home.is_dir():
        raise XftError(f"XFT_HOME is {name[:200]!r}, which is a file. Give a directory.")
    return home


def _store() -> str | None:
    address = os.environ.get("XFT_STORE", "").strip()
    if not address:
        return None
    if not S3_ADDRESS.fullmatch(address):
        shown = "" if "@" in address else f"is {address[:200]!r} and "  # it may be a password that was put there
        raise XftError(
            f"XFT_STORE {shown}must be s3://bucket/prefix: letters, digits and ._=- in the prefix, no credentials. "
            "Those belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in AWS_PROFILE.")
    return address.rstrip("/")


def _mlflow_ui(tracking_uri: str) -> str | None:
    given = os.environ.get("XFT_MLFLOW_UI_URL", "").strip()
    address = given or tracking_uri
    if not address.startswith(("http://", "https://")):
        if given:
            raise XftError(f"XFT_MLFLOW_UI_URL is {given!r}. Give the address of MLflow's pages: http://host:port.")
        return None
    try:
        parts = urlsplit(address)
    except ValueError as error:
        name = "XFT_MLFLOW_UI_URL" if given else "MLFLOW_TRACKING_URI"
        raise XftError(f"{name} is no address ({error}). Give the address of MLflow's pages: http://host:port.") from None
    # A link is shown to everyone: no credentials in it.
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _whole_number(name: str, default: int, least: int, most: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
        raise XftError(
            f"{name} is {text[:100]!r}. Give a whole number, {least} to {most}, or leave it unset for {default}.")
    return int(text)
