"""Names of things to local paths: directories and files, ``demo:`` for what the package ships, Hub names."""

import os
import re
from pathlib import Path

from xft_core.errors import CheckpointError, DataError, HubUnavailable, XftError

DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".arrow")
PACKED_SUFFIXES = (".gz", ".zst")
HUB_SECONDS = 10.0  # to answer whether it would give something
_FOR_ITS_OWN = re.compile(r"\(?Request ID:?[^\n)]*\)?|For more information check: \S*|^\d+ Client Error\.\s*", re.MULTILINE)


def demo_path(name: str) -> Path | None:
    """The shipped file or directory of a ``demo:`` name, None for any other name."""
    if not name.startswith("demo:"):
        return None
    from xft_core.demo import DEMO_DIR
    from xft_core.files.disk import relative_path

    try:
        return DEMO_DIR / relative_path(name.removeprefix("demo:"))
    except ValueError:
        raise DataError(f"{name[:200]!r} is nothing that ships with the package.") from None


def local_path(name: str, kind: type[XftError] = DataError) -> Path:
    """The path that a name means, whether or not something is there. Raises ``kind`` for what no path can be."""
    try:
        path = demo_path(name) or Path(name).expanduser()
        path.exists()  # raises for a name that is too long, a link to itself, a directory that may not be entered
        return path
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise kind(f"{name[:200]!r} cannot be used as a path: {reason}.") from None


def is_there(name: str) -> bool:
    """Whether a name is the path of something here."""
    return local_path(name).exists()


def find_model(name: str) -> Path:
    """The directory of a model: a local one, the demo's, or a snapshot from the Hub (its cache when offline).

    A Hub name may carry a revision: ``owner/model@revision``. Raises CheckpointError when there is no such model.
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
    """Whether a model's name is one to ask the Hub for: ``owner/model``, and nothing here is called so."""
    return is_hub_name(name) and not local_path(name, CheckpointError).exists()


def is_hub_name(name: str) -> bool:
    """Whether a model's or data set's name has the form ``owner/name``, rather than that of a path or a file."""
    return name.count("/") == 1 and ":" not in name and not _has_form_of_path(name)


def is_data_file(name: str) -> bool:
    """Whether instruction data is a local or shipped file rather than a Hub data set, whose owner may be left out."""
    return "://" in name or name.count("/") > 1 or _has_form_of_path(name) or is_there(name)


def _has_form_of_path(name: str) -> bool:
    suffixes = (*DATA_SUFFIXES, *PACKED_SUFFIXES)
    return name.startswith(("/", ".", "~")) or ":" in name or Path(name).suffix.lower() in suffixes or "*" in name


def hub_is_offline() -> bool:
    """Whether HF_HUB_OFFLINE says that the Hub is not to be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")


def ask_for_data_set(name: str) -> None:
    """Ask the Hub whether it would give a data set (``owner/name@revision``). Raises DataError, HubUnavailable."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = name.partition("@")
    try:  # a file of it: of a gated one the Hub describes even what it does not give
        address = hf_hub_url(repository, "README.md", repo_type="dataset", revision=revision or None)
        get_hf_file_metadata(address, timeout=HUB_SECONDS)
    except EntryNotFoundError:  # it may be read, and has no such file
        pass
    except Exception as error:
        raise hub_error(repository, error, DataError) from None


def hub_error(name: str, error: Exception, lasting: type[XftError]) -> XftError:
    """What to tell a person whose Hub name did not work, and what to do: ``lasting`` (CheckpointError for a model, DataError
    for a data set) where trying again cannot help, else HubUnavailable."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    refusal = _refusal(name, error, lasting)
    reason = refusal or _without_request_id(str(error)) or type(error).__name__
    message = f"There is nothing local called {name!r}, and the Hub did not give it: {reason.rstrip('.')}."
    hopeless: tuple[type[Exception], ...] = (OfflineModeIsEnabled, HFValidationError, EntryNotFoundError, ValueError)
    offline = hub_is_offline()
    if refusal or offline:
        return lasting(message)
    if isinstance(error, LocalEntryNotFoundError):  # the Hub was not reached, and its cache has nothing
        return HubUnavailable(message)
    return lasting(message) if isinstance(error, hopeless) else HubUnavailable(message)


def _refusal(name: str, error: Exception, lasting: type[XftError]) -> str | None:
    """Why the Hub refused, and what to do; None where it did not refuse. Libraries raise errors of their own on top of its."""
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
        return f"access to it is restricted. Ask for it on {address}, then {token.format('that account')}"
    if isinstance(found, RepositoryNotFoundError):
        return (f"it has none of that name, or a private one. Check the name; for a private one "
                f"{token.format('an account that may read it')}")
    if isinstance(found, RevisionNotFoundError):
        return "it has no such revision. Check what follows the @"
    if status == 401:
        return f"it does not accept your token ({answer}). Correct or unset HF_TOKEN, or run 'hf auth login' again"
    if status == 403:
        return f"it may not be read ({answer}). If your account may read it, {token.format('that account')}"
    return said if status == 404 else None


def _without_request_id(message: str) -> str:
    """The Hub's sentences in one line, without the parts that only its own people can use."""
    lines = [line.strip() for line in _FOR_ITS_OWN.sub("", message).splitlines()]
    return " ".join(line for line in lines if line)


def find_file(name: str) -> Path:
    """A local or shipped file. Raises DataError when it does not exist."""
    if "://" in name:
        raise DataError(
            f"{name[:200]!r} is an address, and files are not downloaded. Fetch it yourself, for example with curl -LO, and "
            "give the path of the file; of a Hub data set give the name alone (owner/name).")
    path = local_path(name)
    if path.is_dir():
        raise DataError(f"{name[:200]!r} is a directory. Give the path of a file in it.")
    if not path.is_file():
        raise DataError(f"There is no file {name[:200]!r}. Give the path of an existing file (or demo:… for a shipped one).")
    return path
