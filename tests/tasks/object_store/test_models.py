"""Models at S3 addresses, against a real S3 server over HTTP."""

import logging
import shutil
import threading
from pathlib import Path

import pytest

from tasks.object_store import artifacts, bucket, models
from tasks.object_store.bucket import StoreRefused, StoreUnavailable
from tasks.preflight import check_inputs
from tasks.settings import settings
from tests.tasks.object_store.proxy import BUCKET, SECRET_KEY, Proxy, fail_first, raw_client
from xft_core.demo import DEMO_DIR
from xft_core.errors import CheckpointError, RecipeError
from xft_core.recipe.sections import ModelConfig, Recipe
from xft_core.stages.configs import GenerateStage
from xft_core.stages.run import stage_key
from xft_core.store.artifacts import publish, verify
from xft_core.store.workspace import Workspace

ADDRESS = f"s3://{BUCKET}/models/mine"
NEVER = threading.Event()
logger = logging.getLogger("tests.remote_models")


def put(s3: Proxy, name: str, content: bytes) -> None:
    raw_client(s3.target).put_object(Bucket=BUCKET, Key=name, Body=content)


@pytest.fixture
def model(s3: Proxy) -> str:
    """Put the demo model into the bucket, next to files that do not belong to a model."""
    for path in (DEMO_DIR / "model").iterdir():
        put(s3, f"models/mine/{path.name}", path.read_bytes())
    for name in ("pytorch_model.bin", "notes.md", "modeling_evil.py", ".hidden.json", "onnx/model.json", "manifest.json"):
        put(s3, f"models/mine/{name}", b"{}")
    return ADDRESS


def fetch(address: str = ADDRESS) -> Path:
    return models.fetch(address, NEVER, logger)


def key_of(model: Path, tmp_path: Path) -> str:
    return stage_key(GenerateStage(output=tmp_path / "out", model=str(model)))


def test_only_what_makes_a_model_is_fetched_and_only_once(s3: Proxy, model: str, tmp_path: Path) -> None:
    directory = fetch()
    assert directory.parent == settings().models
    assert {path.name for path in directory.iterdir()} == {path.name for path in (DEMO_DIR / "model").iterdir()} | {"whole"}
    asked = s3.count("GET", "safetensors")
    assert fetch(ADDRESS + "/") == directory
    assert s3.count("GET", "safetensors") == asked
    assert key_of(directory, tmp_path) == key_of(DEMO_DIR / "model", tmp_path)  # the key depends on contents, not the address


def test_another_model_at_the_same_address_is_noticed(s3: Proxy, model: str, tmp_path: Path) -> None:
    before = fetch()
    weights = bytearray((before / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    put(s3, "models/mine/model.safetensors", bytes(weights))
    after = fetch()
    assert (after / "model.safetensors").read_bytes() == bytes(weights)
    assert key_of(after, tmp_path) != key_of(before, tmp_path)


def test_a_copy_that_was_cut_short_is_fetched_anew(s3: Proxy, model: str) -> None:
    directory = fetch()
    (directory / "model.safetensors").write_bytes(b"")
    assert fetch() == directory
    assert (directory / "model.safetensors").stat().st_size > 1000


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "whole"])
def test_a_bit_that_flipped_in_a_fetched_model_is_found(name: str, s3: Proxy, model: str, tmp_path: Path) -> None:
    directory = fetch()
    whole = (directory / name).read_bytes()
    (directory / name).write_bytes(whole[:-2] + bytes([whole[-2] ^ 4]) + whole[-1:])
    assert fetch() == directory
    assert key_of(directory, tmp_path) == key_of(DEMO_DIR / "model", tmp_path)
    assert (directory / name).read_bytes() == whole


def published(home: Path) -> Path:
    """Create a merge artifact with the demo model's files and deliver it to the object store."""
    output = home / "artifacts" / "merge" / ("a1" * 16)
    workspace = Workspace(output)
    workspace.prepare()
    for path in (DEMO_DIR / "model").iterdir():
        shutil.copyfile(path, workspace.output / path.name)
    workspace.metrics_path.write_text("{}\n")
    publish(workspace, output, stage="merge", stage_version=1, key="a1" * 32, parents={}, config={}, metrics={},
            provenance={}, seconds=1)
    assert artifacts.deliver(output, NEVER)
    return output


def test_an_artifact_of_the_store_is_the_same_to_a_stage(s3: Proxy, tmp_path: Path) -> None:
    output = published(tmp_path / "other")
    directory = fetch(f"s3://{BUCKET}/some/prefix/artifacts/merge/{output.name}")
    assert verify(directory) == verify(output)
    assert key_of(directory, tmp_path) == key_of(output, tmp_path)
    assert not (settings().artifacts / "merge").exists()  # the address is not trusted enough to fill the store
    kept = artifacts.keep(output)
    assert kept is not None
    assert (fetch(kept) / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()
    (directory / "config.json").write_text("{}")
    assert verify(fetch(f"s3://{BUCKET}/some/prefix/artifacts/merge/{output.name}"))


def test_a_damaged_artifact_is_not_used(s3: Proxy, tmp_path: Path) -> None:
    output = published(tmp_path / "other")
    place = f"some/prefix/artifacts/merge/{output.name}"
    name, = (item["Key"] for item in raw_client(s3.target).list_objects_v2(Bucket=BUCKET, Prefix=place)["Contents"]
             if item["Key"].endswith("safetensors"))
    put(s3, name, b"")
    with pytest.raises(Exception, match=r"model\.safetensors is missing, truncated or altered"):
        fetch(f"s3://{BUCKET}/{place}")
    assert not list(settings().models.glob("*/config.json"))


@pytest.mark.parametrize(("names", "message"), [
    ((), "no object is directly below it"),
    (("sub/config.json",), "no object is directly below it"),
    (("model.safetensors", "tokenizer.json"), "no config.json among model.safetensors, tokenizer.json"),
    (("config.json", "pytorch_model.bin"), "no .safetensors file. Other weight formats can contain code"),
])
def test_what_is_no_model_is_named_before_any_work(s3: Proxy, names: tuple[str, ...], message: str) -> None:
    for name in names:
        put(s3, f"models/mine/{name}", b"{}")
    with pytest.raises(CheckpointError, match=message):
        check_inputs(Recipe(model=ModelConfig(path=ADDRESS)))


def test_an_artifact_with_code_in_it_is_refused(s3: Proxy, tmp_path: Path) -> None:
    output = tmp_path / "artifacts" / "merge" / ("a1" * 16)
    workspace = Workspace(output)
    workspace.prepare()
    (workspace.output / "weights.pkl").write_bytes(b"x")
    publish(workspace, output, stage="merge", stage_version=1, key="a1" * 32, parents={}, config={}, metrics={},
            provenance={}, seconds=1)
    artifacts.deliver(output, NEVER)
    with pytest.raises(CheckpointError, match=r"weights\.pkl"):
        fetch(f"s3://{BUCKET}/some/prefix/artifacts/merge/{output.name}")


def test_bucket_credentials_and_revision_are_named(s3: Proxy, model: str) -> None:
    with pytest.raises(StoreRefused, match=r"no bucket 'not-there'.*correct model.path"):
        fetch("s3://not-there/models/mine")
    with pytest.raises(RecipeError, match=r"model\.revision \('main'\) is for a Hub name"):
        check_inputs(Recipe(model=ModelConfig(path=ADDRESS, revision="main")))
    s3.fault = lambda request: "403 InvalidAccessKeyId"
    with pytest.raises(StoreRefused, match="InvalidAccessKeyId") as caught:
        fetch()
    assert SECRET_KEY not in str(caught.value)


@pytest.mark.parametrize("address", ["s3://", "s3://key:secret@bucket/x", "s3://bucket/../x", "s3://bucket/a b"])
def test_an_address_that_is_none_is_named_but_no_password_repeated(s3: Proxy, address: str) -> None:
    with pytest.raises(CheckpointError, match=r"model\.path.*s3://bucket/prefix") as caught:
        fetch(address)
    assert "secret" not in str(caught.value)
    assert s3.requests == []


def test_a_connection_that_is_cut_goes_on(s3: Proxy, model: str) -> None:
    s3.fault = fail_first(2, "cut response", lambda request: request.method == "GET" and "safetensors" in request.path)
    assert (fetch() / "model.safetensors").read_bytes() == (DEMO_DIR / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_bit_that_flips_on_the_way_here_is_noticed(s3: Proxy, model: str, name: str) -> None:
    s3.fault = fail_first(1, "flip response", lambda request: request.method == "GET" and name in request.path)
    with pytest.raises(StoreUnavailable) as caught:
        fetch()
    assert caught.value.may_pass
    assert (fetch() / name).read_bytes() == (DEMO_DIR / "model" / name).read_bytes()


def test_a_model_whose_tags_tell_nothing_is_read_twice(s3: Proxy, model: str) -> None:
    s3.fault = lambda request: "other tags"
    assert (fetch() / "model.safetensors").read_bytes() == (DEMO_DIR / "model" / "model.safetensors").read_bytes()


def test_one_that_stays_cut_leaves_nothing_and_may_pass(
    s3: Proxy, model: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bucket, "ATTEMPTS", 1)
    s3.fault = lambda request: "503 SlowDown" if "safetensors" in request.path else None
    monkeypatch.setenv("AWS_REGION", "us-east-1")  # another environment needs another client
    with pytest.raises(StoreUnavailable) as caught:
        fetch()
    assert caught.value.may_pass
    assert not [path for path in settings().models.iterdir() if path.is_dir()]
