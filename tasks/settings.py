"""Where things are kept and how much runs at once: read from the environment, with defaults that need nothing set.

    XFT_HOME                 artifacts, databases, locks (default: .xft under the current directory)
    MLFLOW_TRACKING_URI      default: SQLite under XFT_HOME
    PREFECT_API_URL          a Prefect server; without one Prefect's embedded API with its database under XFT_HOME
    XFT_COMPUTE_SLOTS        heavy stages at once on this machine; they share its cores evenly. Default 1 with a GPU (one
                             GPU, one job), 2 without: a tuned model and its baseline train side by side
    XFT_STORE                s3://bucket/prefix: artifacts and checkpoints are kept there too (object_store/); default: none
    XFT_MLFLOW_UI_URL        address of MLflow's web pages, for links to runs; default: MLFLOW_TRACKING_URI where that is a
                             server, else none. `xft ui` tells its worker
    XFT_PREFECT_UI_URL       address of Prefect's web pages, for links to its runs; default: PREFECT_API_URL without /api
    XFT_ONE_ADDRESS          1: MLflow's pages are at /mlflow of Prefect's, and links between them name no host. `xft ui` tells
                             its worker, and `xft run` beside it does the same
    XFT_DELIVERY_SECONDS     how long a run insists on a server that is away (MLflow, the object store) before it gives up:
                             at its end, and before a stage whose result the object store may have; default: 600
    XFT_S3_ENDPOINT_URL      another S3 than Amazon's (or the standard AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL)
    XFT_MLFLOW_COPY_LIMIT_MB largest model, in MB, that is copied into an artifact store that is not this machine's disk

What stages read themselves (XFT_RENDEZVOUS, XFT_BENCHMARKS, XFT_DS1000_ENVIRONMENT) is in xft_core/files/environment.py, and
checked here with the rest, before any work.

pydantic-settings (2.16, which Prefect installs) does not read them. One setting has several names, a refused value may be a
password and is not repeated, and one message lists all problems: the validators would be the readers below, and a translation
of its errors would come on top. ``xft`` reads the settings before it imports anything slow.
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
FIRST_VIEW = "xft.first_view"  # tag of an MLflow experiment: what a table that nobody has arranged begins with
BESIDE = "/mlflow"  # where Prefect's server of `xft ui` has MLflow's pages, too
API_ADDRESS = re.compile(r"https?://[^/\s]+")
TRACKING_SCHEMES = frozenset((
    "http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "databricks-uc", "uc"))
S3_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*/?")


T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """The settings in force. ``mlflow_ui``: address of MLflow's pages without a closing slash; None when unknown.
    ``mlflow_links`` and ``prefect_links``: what links in the other's pages begin with, likewise; without a host where both have
    one address."""

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
    """The settings as the environment has them now. Raises XftError naming every invalid value."""
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
    """The URL of a SQLite database as SQLAlchemy takes it. A path with ``?`` would end there: such a one is given to SQLite
    as a URI (and with the driver named, since MLflow makes the parents of what it takes for a plain path)."""
    if "?" in str(path):
        return f"sqlite+{driver}:///file:{quote(str(path))}?uri=true"
    return f"sqlite{'' if driver == 'pysqlite' else f'+{driver}'}:///{path}"


def without_credentials(text: str) -> str:
    """``text`` without the user name and password of any address in it."""
    return CREDENTIALS.sub("://", text)


def set_environment_defaults() -> None:
    """Fix XFT_HOME as an absolute path, put Prefect's files under it, keep every library from phoning home, and our own
    servers from being asked through a proxy.

    Only what is not set already is set. Has an effect on Prefect only before Prefect is imported. It raises nothing: this
    happens at an import, and what is wrong with a setting is said by ``settings`` where a command or a run begins.
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


def _place_prefect(home: Path) -> None:
    if not os.environ.get("PREFECT_HOME"):
        os.environ["PREFECT_HOME"] = str(home / "prefect")
        with suppress(OSError):  # said by open_home; Prefect makes no parents
            make_private(home)
            (home / "prefect").mkdir(exist_ok=True)
    given = ("PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL")
    if "?" in os.environ["PREFECT_HOME"] and not any(os.environ.get(name) for name in given):
        os.environ[given[1]] = sqlite_url(Path(os.environ["PREFECT_HOME"]) / "prefect.db", "aiosqlite")


def make_private(directory: Path) -> None:
    """Make a directory for this user only, unless it is there."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)


def _except_loopback_from_proxies() -> None:
    """Except this machine's own addresses from proxies. Programs read either spelling, most of them lower case first, where an
    empty value hides the other: both get the same."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if names != ["*"]:  # by itself it excepts every host; in a list it would not
        names += [name for name in LOOPBACK if name not in names]
    value = ",".join(names)
    os.environ |= {"no_proxy": value, "NO_PROXY": value}


def is_loopback(address: str) -> bool:
    """Whether the host of an address is this machine, as far as its name says."""
    host = urlsplit(address).hostname or ""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _check_tracking_uri() -> None:
    scheme, separator, _ = os.environ.get("MLFLOW_TRACKING_URI", "").strip().lower().partition("://")
    if separator and scheme.partition("+")[0] not in TRACKING_SCHEMES:
        raise XftError(
            f"MLFLOW_TRACKING_URI begins with {scheme[:20]!r}, which MLflow does not know. Give a server's address "
            "(http://host:port) or a database (sqlite:///file.db, postgresql://...), or leave it unset.")


def _check_prefect_api() -> None:
    address = os.environ.get("PREFECT_API_URL", "").strip()
    if address and not API_ADDRESS.match(address):
        shown = "" if "@" in address else f" is {address[:200]!r}, which"
        raise XftError(f"PREFECT_API_URL{shown} is no address of an API. Give http://host:port/api, or leave it unset.")


def _check_one_address() -> None:
    value = os.environ.get("XFT_ONE_ADDRESS", "").strip()
    if value not in ("", "0", "1"):
        raise XftError(f"XFT_ONE_ADDRESS is {value[:200]!r}. Give 1, or leave it unset.")


def _check_proxies() -> None:
    """httpx, which Prefect and the Hub's client use, fails where a SOCKS proxy is set and it cannot use one."""
    if find_spec("socksio") is None:
        for kind, address in getproxies().items():
            if kind in ("http", "https", "all") and address.startswith("socks"):
                raise XftError(
                    f"{kind}_proxy names a SOCKS proxy, which needs the package socksio. Install it (pip install socksio), or "
                    "unset the variable.")


def _default_slots() -> int:
    has_gpu = Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()  # torch would know, but takes seconds to ask
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
        shown = "" if "@" in address else f"is {address[:200]!r} and "  # it may be a password that was put there
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
    """The address of web pages in setting ``name``, else ``instead``, which is of setting ``other``."""
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
