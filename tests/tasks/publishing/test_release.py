"""A registered version published to a Hub by the real client over HTTP, to S3 (moto), and to a directory. Each is checked."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tasks.object_store import artifacts as remote
from tasks.object_store import models
from tasks.publishing.destinations import CannotPublish, Directory, ObjectStore
from tasks.publishing.release import Licences, ReleaseDiffers, card_of, check, destinations_of, release_to
from tasks.references import PipelineRun
from tasks.tracking import registry
from tasks.tracking.client import client
from tasks.tracking.model import log_model
from tasks.tracking.registered import NotRegistered, Version, resolve
from tests.factories import dense_model, picture_model, tokenizer
from tests.tasks.environment import HOME
from tests.tasks.object_store.proxy import BUCKET, Proxy
from tests.tasks.publishing.hub import TOKEN, FakeHub
from tests.tasks.tracking.test_registry import CARD, made
from xft_core.files.digests import file_digest
from xft_core.recipe.sections import Recipe, RegistryConfig

SCRIPT = Path(__file__).with_name("send_to_hub.py")
logger = logging.getLogger("tests.release")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub().serving() as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = dense_model(tmp_path / "model")
    (directory / "README.md").write_text(CARD)
    return directory


@pytest.fixture
def registered(run: PipelineRun, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Register a version from a run as champion of its name; return its address."""
    recipe = Recipe(name=request.node.originalname, experiment=run.recipe.experiment, registry=RegistryConfig(register="all"))
    named = run.model_copy(update={"recipe": recipe})
    artifacts = made(tmp_path)
    (tmp_path / "card.md").write_text(CARD)
    log_model(named, artifacts["merge"].path, tmp_path / "card.md")
    registry.register(named, artifacts, CARD, True, remote.keep, logger)
    return f"models:/{named.recipe.name}@champion"


def sent(hub: FakeHub, model: Path, kind: str = "private", token: str = TOKEN) -> str:
    environment = os.environ | {
        "HF_ENDPOINT": hub.address, "HF_HOME": str(model.parent / "hf"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token, "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(model), "me/it", kind], capture_output=True, text=True, env=environment,
        cwd=Path(__file__).parents[3], timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_hub_gets_a_private_model_that_loads_and_is_the_same(hub: FakeHub, model: Path) -> None:
    """An interrupted upload is resumed: objects that are there are not sent again."""
    hub.fail_uploads = 1
    assert sent(hub, model).startswith(("CannotPublish", "HubNotReached"))
    assert hub.repositories["me/it"].head == "0" * 40
    place = sent(hub, model)
    assert place == f"me/it@{hub.repositories['me/it'].head}"
    assert hub.repositories["me/it"].private
    stored = hub.repositories["me/it"].commits[hub.repositories["me/it"].head]
    assert stored["model.safetensors"] == (model / "model.safetensors").read_bytes() and stored["README.md"] == CARD.encode()
    uploads = [request for request in hub.requests if request.startswith("PUT /lfs/")]
    sent(hub, model)
    assert [request for request in hub.requests if request.startswith("PUT /lfs/")] == uploads
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {
        name: "model-00001-of-00001.safetensors" for name in load_file(model / "model-00001-of-00001.safetensors")}}))
    sent(hub, model)  # must remove the weights under their old name, which would be loaded too
    assert "model.safetensors" not in hub.repositories["me/it"].commits[hub.repositories["me/it"].head]


def test_nothing_of_an_earlier_version_changes_what_the_hub_answers(hub: FakeHub, model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [5]}))
    sent(hub, model)
    (model / "chat_template.jinja").unlink()
    (model / "generation_config.json").unlink()
    repository = hub.repositories["me/it"]
    repository.commits[repository.head]["LICENSE.txt"] = b"The user's own."
    sent(hub, model)
    assert repository.commits[repository.head].keys() == {*(path.name for path in model.iterdir()), "README.md", "LICENSE.txt"}


def test_what_the_hub_refuses_is_said(hub: FakeHub, model: Path) -> None:
    assert sent(hub, model, token="hf_wrong").startswith("CannotPublish The Hub does not allow writing to me/it (401)")
    sent(hub, model)
    assert "is private, but should be public" in sent(hub, model, kind="public")
    hub.altered = "model.safetensors"
    assert not sent(hub, model).startswith("me/it")


@pytest.mark.slow
def test_a_version_goes_to_s3_and_to_a_directory_and_comes_back(
    registered: str, s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XFT_HOME", str(HOME))  # the version is registered in this home; the fixture s3 set another one
    address = f"s3://{BUCKET}/released/one"
    places = [ObjectStore(address), Directory(tmp_path / "released")]
    found = release_to(registered, places, Licences("apache-2.0", "CC-BY-4.0"), threading.Event(), logger)
    assert found == {"objectstore": address, "directory": str(tmp_path / "released")}
    AutoModelForCausalLM.from_pretrained(tmp_path / "released")
    card = (tmp_path / "released" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\nlicense: apache-2.0\n---\n")
    assert "| base model | `demo:model` |" in card and "Data: CC-BY-4.0." in card
    fetched = models.fetch(address, threading.Event(), logger)
    assert file_digest(fetched / "model.safetensors") == file_digest(tmp_path / "released" / "model.safetensors")
    version = resolve(registered)
    assert version.tags["xft.published.objectstore"] == address
    written = len([request for request in s3.requests if request.method == "PUT"])
    release_to(registered, places, Licences("apache-2.0", "CC-BY-4.0"), threading.Event(), logger)  # sends nothing again
    assert len([request for request in s3.requests if request.method == "PUT"]) == written


def test_a_place_that_holds_something_else_is_left_alone(
    registered: str, s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XFT_HOME", str(HOME))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(CannotPublish, match="has other contents"):
        release_to(registered, [Directory(tmp_path / "full")], Licences(), threading.Event(), logger)
    (HOME / "published").mkdir(exist_ok=True)
    (HOME / "published" / f"{resolve(registered).name}-1").write_text("where it goes with no place given")
    with pytest.raises(CannotPublish, match=r"published/test_a_place_\w+-1' exists and has other contents"):
        release_to(registered, [], Licences(), threading.Event(), logger)
    ObjectStore(f"s3://{BUCKET}/other").send({"mine.txt": tmp_path / "full" / "mine"}, "", threading.Event())
    with pytest.raises(CannotPublish, match=r"'mine\.txt', which is not part of this model"):
        release_to(registered, [ObjectStore(f"s3://{BUCKET}/other")], Licences(), threading.Event(), logger)
    with pytest.raises(NotRegistered, match="has no models:/nobody@champion"):
        resolve("models:/nobody@champion")
    with pytest.raises(NotRegistered, match="is not a registered version"):
        resolve("demo")


def test_a_model_that_came_back_another_is_found_out(model: Path, tmp_path: Path) -> None:
    files = {path.name: path for path in model.iterdir()}
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    check(files, model, copy)
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    save_file(weights | {name: weights[name] * 1.5}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ReleaseDiffers, match=r"In the copy fetched from the destination, model\.safetensors is altered\."):
        check(files, model, copy)
    with pytest.raises(ReleaseDiffers, match="does not behave like the registered one"):
        check({}, model, copy)


def test_a_model_that_reads_pictures_can_be_checked(tmp_path: Path) -> None:
    model = picture_model(tmp_path / "model")
    tokenizer("<image>").save_pretrained(model)
    copy = shutil.copytree(model, tmp_path / "copy")
    check({path.name: path for path in model.iterdir()}, model, copy)


def test_a_card_without_licences_says_so() -> None:
    card = card_of(Version("it", 3, "", "", {"xft.seed": "7"}), CARD, Licences())
    assert "| registered as | `it, version 3` |" in card and "| seed | `7` |" in card
    assert "Model: not stated: the licence of the base model applies." in card


def test_offline_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CannotPublish, match="HF_HUB_OFFLINE is set"):
        destinations_of("me/it", False, None, "", "")
    assert client()


def test_a_worker_makes_no_directory_beside_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotPublish, match=r"directory is 'released/it'.*Give an absolute path"):
        destinations_of("", False, None, "", "released/it", on_worker=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    (here,) = destinations_of("", False, None, "", "~/it", on_worker=True)
    (tmp_path / "a").write_text("a")
    assert here.send({"a": tmp_path / "a"}, "it", threading.Event()) == str(tmp_path / "it")
