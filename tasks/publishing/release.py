"""Publish a registered version: send its files and card, fetch them again, and test them.

    release        config.json, weights, tokenizer, generation defaults as registered; README.md: the card, with lineage
    check          every file fetched from the destination has the same sha256, and the fetched model, loaded by
                   transformers, gives the registered model's logits and greedy tokens
"""

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from prefect import get_run_logger, task

from tasks import prefect_log
from tasks.object_store import models
from tasks.prefect_log import Logger
from tasks.publishing.destinations import CannotPublish, Destination, Directory, Hub, ObjectStore
from tasks.retry import RETRIED
from tasks.settings import settings
from tasks.tracking import registered
from tasks.tracking.registered import Version
from xft_core.errors import XftError
from xft_core.files.digests import file_digest, model_files
from xft_core.files.temporary import temporary_directory

prefect_log.install()

CARD = "README.md"
SMOKE_SECONDS = 3600.0
NOT_OF_MODEL = frozenset({
    "input_example.json", "serving_input_example.json", "requirements.txt", "manifest.json", "router.json"})
LINEAGE = {
    "xft.base_model": "base model", "xft.base_model.digest": "digest of the base model", "xft.data": "instruction data",
    "xft.data.digest": "digest of the prepared data", "xft.recipe": "recipe", "xft.seed": "seed",
    "xft.digest": "digest of the merged model", "xft.held_out_nll": "held-out loss [nats per response token]",
    "xft.plus_pass_at_1": "pass@1 on all tests [fraction]"}


class ReleaseDiffers(XftError):
    """The model fetched from a destination is not the registered one."""


@dataclass(frozen=True)
class Licences:
    """The licences on the card. ``model``: an identifier of the Hub (apache-2.0, other); ``data``: in words."""

    model: str = ""
    data: str = ""


@task(name="release", **RETRIED)
def release(address: str, destinations: list[Destination], licences: Licences) -> dict[str, str]:
    """Publish the version at ``address`` to every destination and check each; without one, to ``published`` in the home.
    Returns the places by kind of destination.

    Raises NotRegistered, CannotPublish, ReleaseDiffers; HubNotReached and StoreUnavailable, which may pass.
    """
    logger, stop = get_run_logger(), threading.Event()
    return release_to(address, destinations, licences, stop, logger)


def release_to(
    address: str, destinations: list[Destination], licences: Licences, stop: threading.Event, logger: Logger,
) -> dict[str, str]:
    """See ``release``."""
    version = registered.resolve(address)
    destinations = destinations or [Directory(settings().home / "published" / f"{version.name}-{version.number}")]
    found = {}
    with temporary_directory("transfer") as root:
        directory = _files(version, root / "registered", stop, logger)
        files = {path.name: path for path in model_files(directory) if path.name not in NOT_OF_MODEL}
        if not any(name.endswith(".safetensors") for name in files):
            raise CannotPublish(
                f"{version.address} has no weights: they were larger than XFT_MLFLOW_COPY_LIMIT_MB, and there was no object "
                "store. Register it with an object store (XFT_STORE).")
        card = directory / CARD
        (root / CARD).write_text(
            card_of(version, card.read_text(encoding="utf-8") if card.is_file() else "", licences), encoding="utf-8")
        files[CARD] = root / CARD
        for number, destination in enumerate(destinations):
            place = destination.send(files, f"{version.name} version {version.number}", stop)
            back = root / f"back-{number}"
            back.mkdir()
            destination.receive(place, list(files), back, stop)
            check(files, directory, back)
            kind = type(destination).__name__.lower()
            registered.note(version, f"xft.published.{kind}", place)
            logger.info("Published %s: %s. The fetched copy has the same files, logits and tokens.", version.address, place)
            found[kind] = place
    return found


def card_of(version: Version, card: str, licences: Licences) -> str:
    """Return the version's model card with its lineage and licences."""
    front, body = {}, card
    if card.startswith("---\n"):
        _, text, body = card.split("---\n", 2)
        front = {"text": text}
    lines = [line for line in front.get("text", "").splitlines() if not line.startswith("license:")]
    lines += [f"license: {licences.model}"] if licences.model else []
    rows = [("registered as", f"{version.name}, version {version.number}")]
    rows += [(name, version.tags[tag]) for tag, name in LINEAGE.items() if tag in version.tags]
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in rows)])
    data = licences.data or "not stated: the licence of the instruction data applies"
    model = licences.model or "not stated: the licence of the base model applies"
    head = "---\n" + "".join(f"{line}\n" for line in lines) + "---\n" if lines else ""
    without_pictures = "\n".join(line for line in body.splitlines() if not line.startswith("!["))
    return f"{head}{without_pictures}\n\n## Lineage\n\n{table}\n\n## Licences\n\nModel: {model}. Data: {data}.\n"


def check(files: dict[str, Path], source: Path, back: Path) -> None:
    """Compare the fetched files and model with the registered ones. Raises ReleaseDiffers."""
    for name, path in files.items():
        if not (back / name).is_file() or file_digest(back / name) != file_digest(path):
            how = "altered" if (back / name).is_file() else "missing"
            raise ReleaseDiffers(f"In the copy fetched from the destination, {name} is {how}.")
    done = subprocess.run(
        [sys.executable, "-m", "xft_core.exports.smoke", str(source), str(back)], capture_output=True, text=True,
        timeout=SMOKE_SECONDS)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ReleaseDiffers(
            f"The published model does not behave like the registered one: {said[-1] if said else 'its check ended.'}")
    assert json.loads(done.stdout)["same_tokens"]


def _files(version: Version, target: Path, stop: threading.Event, logger: Logger) -> Path:
    if models.is_address(version.source) and version.source.startswith(f"{settings().store}/artifacts/"):
        return models.fetch(version.source, stop, logger)
    target.mkdir()
    return registered.download(version, target)


def destinations_of(
    hub: str, public: bool, token: str | None, s3: str, directory: str, on_worker: bool = False,
) -> list[Destination]:
    """Return the destinations whose arguments are not empty. ``on_worker``: the user did not choose the current directory.
    Raises CannotPublish for an invalid destination."""
    path = Path(directory).expanduser()
    if directory and on_worker and not path.is_absolute():
        raise CannotPublish(
            f"directory is {directory!r}, which a worker would create next to its code. Give an absolute path on the worker, "
            "such as /srv/models/demo-3, or leave it empty for published/NAME-VERSION in XFT_HOME.")
    found: list[Destination] = []
    found += [Hub(hub, public, token)] if hub else []
    found += [ObjectStore(s3)] if s3 else []
    found += [Directory(path)] if directory else []
    return found


def token_in_block(name: str) -> str | None:
    """Return the token in a Secret block of Prefect; None without a name. Raises CannotPublish if no block has that name."""
    if not name:
        return None
    from prefect.blocks.system import Secret

    try:
        return str(Secret.load(name).get())  # type: ignore[union-attr]
    except ValueError:
        raise CannotPublish(f"Prefect has no Secret block named {name!r}. Create it on Prefect's Blocks page.") from None
