"""Resolve names to local paths: directories and files, ``demo:`` names of shipped files, Hub names."""

import os
import re
from pathlib import Path

from xft_core.errors import CheckpointError, DataError, HubUnavailable, XftError

DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".arrow")
PACKED_SUFFIXES = (".gz", ".zst")
HUB_SECONDS = 10.0  # time limit for an access check
_FOR_ITS_OWN = re.compile(r"\(?Request ID:?[^\n)]*\)?|For more information check: \S*|^\d+ Client Error\.\s*", re.MULTILINE)


def demo_path(name: str) -> Path | None:
    """The shipped file or directory of a ``demo:`` name; None for any other name."""
    if not name.startswith("demo:"):
        return None
    from xft_core.demo import DEMO_DIR
    from xft_core.files.disk import relative_path

    try:
        return DEMO_DIR / relative_path(name.removeprefix("demo:"))
    except ValueError:
        raise DataError(f"{name[:200]!r} does not ship with the package.") from None


def local_path(name: str, kind: type[XftError] = DataError) -> Path:
    """The path that a name refers to, whether or not it exists. Raises ``kind`` for names that cannot be paths."""
    try:
        path = demo_path(name) or Path(name).expanduser()
        path.exists()  # raises for a name that is too long, a link to itself, a directory that may not be entered
        return path
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise kind(f"{name[:200]!r} cannot be used as a path: {reason}.") from None


def is_there(name: str) -> bool:
    """Whether a name is an existing local path."""
    return local_path(name).exists()


def find_model(name: str) -> Path:
    """The directory of a model: a local one, the demo's, or a snapshot from the Hub (from its cache when offline).

    A Hub name may have a revision: ``owner/model@revision``. Raises CheckpointError if the model does not exist.
    """
    path = local_path(name, CheckpointError)
    if path.is_dir():
        return path
    if not is_hub_model(name):
        raise CheckpointError(f"There is no model directory {name[:200]!r}. Give a directory or a Hub name (owner/model).")
    from huggingface_hub import snapshot_download

    from xft_core.files.digests import MODEL_FILE_SUFFIXES

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(
            repository, revision=revision or None, allow_patterns=[f"*{suffix}" for suffix in MODEL_FILE_SUFFIXES]))
    except Exception as error:
        raise hub_error(repository, error, CheckpointError) from None


def is_hub_model(name: str) -> bool:
    """Whether a model's name refers to the Hub: it has the form ``owner/model`` and is not a local path."""
    return is_hub_name(name) and not local_path(name, CheckpointError).exists()


def is_hub_name(name: str) -> bool:
    """Whether the name of a model or data set has the form ``owner/name``, rather than that of a path or file."""
    return name.count("/") == 1 and ":" not in name and not _has_form_of_path(name)


def is_data_file(name: str) -> bool:
    """Whether instruction data is a local or shipped file rather than a Hub data set, whose name may lack an owner."""
    return "://" in name or name.count("/") > 1 or _has_form_of_path(name) or is_there(name)


def _has_form_of_path(name: str) -> bool:
    suffixes = (*DATA_SUFFIXES, *PACKED_SUFFIXES)
    return name.startswith(("/", ".", "~")) or ":" in name or Path(name).suffix.lower() in suffixes or "*" in name


def hub_is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests to the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")


def ask_for_data_set(name: str) -> None:
    """Check with the Hub that a data set (``owner/name@revision``) is accessible. Raises DataError or HubUnavailable."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = name.partition("@")
    try:  # request a file, because the Hub describes gated data sets even without access
        address = hf_hub_url(repository, "README.md", repo_type="dataset", revision=revision or None)
        get_hf_file_metadata(address, timeout=HUB_SECONDS)
    except EntryNotFoundError:  # accessible, but without this file
        pass
    except Exception as error:
        raise hub_error(repository, error, DataError) from None


def hub_error(name: str, error: Exception, lasting: type[XftError]) -> XftError:
    """The error for a Hub name that did not work, with advice for the user: ``lasting`` (CheckpointError for a model,
    DataError for a data set) if trying again cannot help, else HubUnavailable."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    refusal = _refusal(name, error, lasting)
    reason = refusal or _without_request_id(str(error)) or type(error).__name__
    message = f"There is no local file or directory {name!r}, and the Hub did not provide it: {reason.rstrip('.')}."
    hopeless: tuple[type[Exception], ...] = (OfflineModeIsEnabled, HFValidationError, EntryNotFoundError, ValueError)
    offline = hub_is_offline()
    if refusal or offline:
        return lasting(message)
    if isinstance(error, LocalEntryNotFoundError):  # the Hub was unreachable, and the name is not in its cache
        return HubUnavailable(message)
    return lasting(message) if isinstance(error, hopeless) else HubUnavailable(message)


def _refusal(name: str, error: Exception, lasting: type[XftError]) -> str | None:
    """Why the Hub refused, with advice; None if it did not refuse. Libraries wrap the Hub's errors in their own."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    found: BaseException | None = error
    while found is not None and not isinstance(found, HfHubHTTPError):
        found = found.__cause__ or found.__context__
    if found is None:
        return None
    token = "set HF_TOKEN to a token of {} (https://huggingface.co/settings/tokens), or run 'hf auth login'"
    status, said = found.response.status_code, _without_request_id(str(found)).rstrip(".")
    answer = (found.server_message or said).rstrip(".")
    if isinstance(found, GatedRepoError):
        address = f"https://huggingface.co/{'datasets/' if lasting is DataError else ''}{name}"
        return f"access is restricted. Request access on {address}, then {token.format('that account')}"
    if isinstance(found, RepositoryNotFoundError):
        return (f"it does not exist there or is private. Check the name; if it is private, "
                f"{token.format('an account that may read it')}")
    if isinstance(found, RevisionNotFoundError):
        return "there is no such revision. Check the part after the @"
    if status == 401:
        return f"the Hub does not accept your token ({answer}). Correct or unset HF_TOKEN, or run 'hf auth login' again"
    if status == 403:
        return f"access is denied ({answer}). If your account may read it, {token.format('that account')}"
    return said if status == 404 else None


def _without_request_id(message: str) -> str:
    """The Hub's message on one line, without the parts that are only useful to the Hub's staff."""
    lines = [line.strip() for line in _FOR_ITS_OWN.sub("", message).splitlines()]
    return " ".join(line for line in lines if line)


def find_file(name: str) -> Path:
    """The path of a local or shipped file. Raises DataError if it does not exist."""
    if "://" in name:
        raise DataError(
            f"{name[:200]!r} is a URL, and files are not downloaded. Download it yourself, for example with curl -LO, and "
            "give the path of the file. For a Hub data set, give only its name (owner/name).")
    path = local_path(name)
    if path.is_dir():
        raise DataError(f"{name[:200]!r} is a directory. Give the path of a file in it.")
    if not path.is_file():
        raise DataError(f"There is no file {name[:200]!r}. Give the path of an existing file (or demo:… for a shipped one).")
    return path
