"""Settings for where things are kept and how much runs at once, from the environment. All have defaults.

    XFT_HOME                 artifacts, databases, locks (default: .xft under the current directory)
    MLFLOW_TRACKING_URI      default: SQLite under XFT_HOME
    PREFECT_API_URL          a Prefect server; default: Prefect's embedded API with its database under XFT_HOME
    XFT_COMPUTE_SLOTS        number of heavy stages at once on this machine, which share its cores evenly. Default: 1 with a
                             GPU (one GPU, one job), 2 without: a tuned model and its baseline train side by side
    XFT_STORE                s3://bucket/prefix that also keeps artifacts and checkpoints (object_store/); default: none
    XFT_MLFLOW_UI_URL        address of MLflow's web pages, for links to runs; default: MLFLOW_TRACKING_URI if that is a
                             server, else none. `xft ui` sets it for its worker
    XFT_PREFECT_UI_URL       address of Prefect's web pages, for links to its runs; default: PREFECT_API_URL without /api
    XFT_ONE_ADDRESS          1: MLflow's pages are at /mlflow of Prefect's, and links between them name no host. `xft ui` sets
                             it for its worker, and `xft run` sets it next to a running `xft ui`
    XFT_DELIVERY_SECONDS     how long a run retries an unavailable server (MLflow, the object store) before it gives up: at its
                             end, and before a stage whose result the object store may have; default: 600
    XFT_S3_ENDPOINT_URL      an S3 other than Amazon's (or the standard AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL)
    XFT_MLFLOW_COPY_LIMIT_MB largest model, in MB, that is copied into an artifact store that is not this machine's disk

The variables that stages read themselves (XFT_RENDEZVOUS, XFT_BENCHMARKS, XFT_DS1000_ENVIRONMENT) are in
xft_core/files/environment.py. They are checked here with the rest, before any work.

pydantic-settings (2.16, which Prefect installs) does not read them. A setting can have several names, a refused value may be a
password and is not repeated, and one message lists all problems. With pydantic-settings, the readers below would become
validators, and its errors would need translating as well. ``xft`` reads the settings before it imports anything slow.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import getproxies

from xft_core.errors import XftError
from xft_core.files.environment import path_setting, rendezvous

DEFAULT_HOME = ".xft"
KEY_LENGTH = 32  # hexadecimal digits of the key that name a directory of the store: 128 bits
CREDENTIALS = re.compile(r"://[^/\s'\"]*@")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FIRST_VIEW = "xft.first_view"  # tag of an MLflow experiment: initial layout of its table
BESIDE = "/mlflow"  # path at which the Prefect server of `xft ui` also serves MLflow's pages
API_ADDRESS = re.compile(r"https?://[^/\s]+")
TRACKING_SCHEMES = frozenset((
    "http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "databricks-uc", "uc"))
S3_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*/?")


T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """The current settings. ``mlflow_ui``: address of MLflow's pages without a trailing slash; None if unknown.
    ``mlflow_links`` and ``prefect_links``: likewise, the prefix of links in the other's pages; without a host if both have the
    same address."""

    home: Path
    tracking_uri: str
    compute_slots: int
    copy_limit_mb: int
    delivery_seconds: int = 600
    store: str | None = None
    mlflow_ui: str | None = None
    mlflow_links: str | None = None
    prefect_links: str | None = None
    s3_endpoint: str | None = None

    @property
    def artifacts(self) -> Path:
        """The store: ``<stage>/<key>/`` below it."""
        return self.home / "artifacts"

    @property
    def models(self) -> Path:
        """Models that were fetched from S3 addresses."""
        return self.home / "models"

    @property
    def data(self) -> Path:
        """Data that was fetched from addresses."""
        return self.home / "data"

    @property
    def runs(self) -> Path:
        """One small file for each pipeline run, which lists the artifacts it uses."""
        return self.home / "runs"

    @property
    def locks(self) -> Path:
        """Lock files: compute slots and owners of MLflow runs."""
        return self.home / "locks"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where MLflow keeps files if no MLflow server manages them."""
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
    """Return the settings in the present environment. Raises XftError naming every invalid value."""
    problems: list[str] = []

    def read(setting: Callable[[], T], instead: T) -> T:
        try:
            return setting()
        except XftError as error:
            problems.append(str(error))
            return instead

    home = read(_home, Path())
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(home / "mlflow.db")
    found = Settings(
        home=home,
        tracking_uri=tracking_uri,
        compute_slots=read(lambda: _whole_number("XFT_COMPUTE_SLOTS", _default_slots(), least=1, most=1024), 1),
        copy_limit_mb=read(lambda: _whole_number("XFT_MLFLOW_COPY_LIMIT_MB", 1024, least=0, most=10**8), 0),
        delivery_seconds=read(lambda: _whole_number("XFT_DELIVERY_SECONDS", 600, least=0, most=10**6), 0),
        store=read(_store, None),
        mlflow_ui=(mlflow_ui := read(lambda: _mlflow_ui(tracking_uri), None)),
        mlflow_links=BESIDE if (one_address := os.environ.get("XFT_ONE_ADDRESS") == "1") else mlflow_ui,
        prefect_links="" if one_address else read(_prefect_ui, None),
        s3_endpoint=read(_s3_endpoint, None),
    )
    for check in (_check_tracking_uri, _check_prefect_api, _check_one_address, rendezvous):
        read(check, None)
    for name in ("XFT_BENCHMARKS", "XFT_DS1000_ENVIRONMENT", "XDG_CACHE_HOME"):
        read(partial(path_setting, name), None)
    read(_check_proxies, None)
    if problems:
        raise XftError("\n".join(dict.fromkeys(problems)))
    return found


def sqlite_url(path: Path, driver: str = "pysqlite") -> str:
    """Return the URL of a SQLite database for SQLAlchemy, which would cut a path at ``?``. Such a path is passed to SQLite as a
    URI (and with the driver named, because MLflow creates parent directories of what it takes for a plain path)."""
    if "?" in str(path):
        return f"sqlite+{driver}:///file:{quote(str(path))}?uri=true"
    return f"sqlite{'' if driver == 'pysqlite' else f'+{driver}'}:///{path}"


def without_credentials(text: str) -> str:
    """Return ``text`` without the user name and password of any address in it."""
    return CREDENTIALS.sub("://", text)


def set_environment_defaults() -> None:
    """Set XFT_HOME to an absolute path, put Prefect's files under it, disable telemetry in all libraries, and exclude our own
    servers from proxies.

    Keeps variables that are already set. Affects Prefect only before it is imported. Raises nothing, because this happens at an
    import: ``settings`` reports invalid settings when a command or a run starts.
    """
    with suppress(XftError):
        home = _home()
        os.environ["XFT_HOME"] = str(home)
        if not os.environ.get("PREFECT_API_URL"):
            _place_prefect(home)
    _except_loopback_from_proxies()
    defaults = {
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # On two busy cores, the first start of Prefect's embedded API takes longer than Prefect's 20 s.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",
        # MLflow's messages while it creates its tables are of no use to users.
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        # MLflow's links to runs may contain a password; the links that we show do not.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # An unavailable tracking server must not delay a stage for minutes: we retry ourselves.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        # If a Prefect server restarts, a request is tried for about eight minutes instead of one.
        "PREFECT_CLIENT_MAX_RETRIES": "8",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _place_prefect(home: Path) -> None:
    if not os.environ.get("PREFECT_HOME"):
        os.environ["PREFECT_HOME"] = str(home / "prefect")
        with suppress(OSError):  # open_home reports the error; Prefect creates no parent directories
            make_private(home)
            (home / "prefect").mkdir(exist_ok=True)
    given = ("PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL")
    if "?" in os.environ["PREFECT_HOME"] and not any(os.environ.get(name) for name in given):
        os.environ[given[1]] = sqlite_url(Path(os.environ["PREFECT_HOME"]) / "prefect.db", "aiosqlite")


def make_private(directory: Path) -> None:
    """Create a directory for this user only, unless it exists."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)


def _except_loopback_from_proxies() -> None:
    """Exclude this machine's own addresses from proxies. Programs read either spelling of the variable, most of them lower case
    first, where an empty value hides the other one. So both get the same value."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if names != ["*"]:  # alone it excludes every host; in a list it would not
        names += [name for name in LOOPBACK if name not in names]
    value = ",".join(names)
    os.environ |= {"no_proxy": value, "NO_PROXY": value}


def is_loopback(address: str) -> bool:
    """Return whether the host of an address is this machine, judging by its name."""
    host = urlsplit(address).hostname or ""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _check_tracking_uri() -> None:
    scheme, separator, _ = os.environ.get("MLFLOW_TRACKING_URI", "").strip().lower().partition("://")
    if separator and scheme.partition("+")[0] not in TRACKING_SCHEMES:
        raise XftError(
            f"MLFLOW_TRACKING_URI begins with {scheme[:20]!r}, which MLflow does not support. Give a server's address "
            "(http://host:port) or a database (sqlite:///file.db, postgresql://...), or leave it unset.")


def _check_prefect_api() -> None:
    address = os.environ.get("PREFECT_API_URL", "").strip()
    if address and not API_ADDRESS.match(address):
        shown = "" if "@" in address else f" is {address[:200]!r}, which"
        raise XftError(f"PREFECT_API_URL{shown} is not an API address. Give http://host:port/api, or leave it unset.")


def _check_one_address() -> None:
    value = os.environ.get("XFT_ONE_ADDRESS", "").strip()
    if value not in ("", "0", "1"):
        raise XftError(f"XFT_ONE_ADDRESS is {value[:200]!r}. Give 1, or leave it unset.")


def _check_proxies() -> None:
    """Check for SOCKS proxies: httpx, which Prefect and the Hub's client use, fails if one is set and it cannot use it."""
    if find_spec("socksio") is None:
        for kind, address in getproxies().items():
            if kind in ("http", "https", "all") and address.startswith("socks"):
                raise XftError(
                    f"{kind}_proxy names a SOCKS proxy, which needs the package socksio. Install it (pip install socksio), or "
                    "unset the variable.")


def _default_slots() -> int:
    has_gpu = Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()  # torch knows, but takes seconds to import
    return 1 if has_gpu else min(2, len(os.sched_getaffinity(0)))


def _home() -> Path:
    home = path_setting("XFT_HOME", DEFAULT_HOME)
    assert home is not None
    return home


def _store() -> str | None:
    address = os.environ.get("XFT_STORE", "").strip()
    if not address:
        return None
    if not S3_ADDRESS.fullmatch(address):
        shown = "" if "@" in address else f"is {address[:200]!r} and "  # it may contain a password
        raise XftError(
            f"XFT_STORE {shown}must be s3://bucket/prefix: letters, digits and ._=- in the prefix, no credentials. "
            "Those belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in AWS_PROFILE.")
    return address.rstrip("/")


def _mlflow_ui(tracking_uri: str) -> str | None:
    if not os.environ.get("XFT_MLFLOW_UI_URL", "").strip() and not tracking_uri.startswith(("http://", "https://")):
        return None
    return _pages("XFT_MLFLOW_UI_URL", "MLFLOW_TRACKING_URI", tracking_uri, "MLflow's")


def _prefect_ui() -> str | None:
    api = os.environ.get("PREFECT_API_URL", "").strip().rstrip("/").removesuffix("/api")
    if not os.environ.get("XFT_PREFECT_UI_URL", "").strip() and not api.startswith(("http://", "https://")):
        return None
    return _pages("XFT_PREFECT_UI_URL", "PREFECT_API_URL", api, "Prefect's")


def _pages(name: str, other: str, instead: str, whose: str) -> str:
    """Return the address of web pages in setting ``name``, else ``instead``, which is from setting ``other``."""
    given = os.environ.get(name, "").strip()
    address = given or instead
    if not address.startswith(("http://", "https://")):
        raise XftError(f"{name if given else other} is {address!r}. Give the address of {whose} pages: http://host:port.")
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise XftError(
            f"{name if given else other} is not an address ({error}). Give the address of {whose} pages: http://host:port."
        ) from None
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


def _s3_endpoint() -> str | None:
    for name in ("XFT_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if value := os.environ.get(name, "").strip():
            try:
                parts = urlsplit(value)
                _ = parts.port
            except ValueError:
                parts = urlsplit("")
            if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
                raise XftError(f"{name} must be http://host:port or https://host, without user name or password.")
            return value
    return None
