"""A real S3 server that others write to: forged manifests and checkpoints, and keys that lead elsewhere.

Whatever it contains, no file outside XFT_HOME is written or removed, and no object outside the prefix.
"""

import json
import logging
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.fuzz.target import target
from tests.fuzz.values import NAMES, changed, json_text
from tests.tasks.object_store.proxy import ACCESS_KEY, BUCKET, SECRET_KEY, raw_client
from xft_core.errors import XftError
from xft_core.files.digests import digest_of, file_digest

KEY = "0123456789abcdef" * 4
KEYS = [
    "artifacts/mix/../../outside/manifest.json", "artifacts//x/manifest.json", "artifacts/mix/../manifest.json",
    "artifacts/mix/\x01/manifest.json", "artifacts/mix/%2e%2e/manifest.json", 'artifacts/mix/<&>"/manifest.json',
    "artifacts/mix/" + "a" * 900 + "/manifest.json", "artifacts/mix/a\\..\\b/manifest.json", "artifacts/mix/", "runs/../x.json",
    "runs/x.json", "runs/", "kept/..", "kept/mix/" + KEY[:32], "checkpoints/sft/../../outside/x", "checkpoints/sft//x/y",
    "config.json", "model.safetensors", "../config.json", "a/../model.safetensors", "manifest.json", "é" * 200 + ".json"]


@lru_cache(maxsize=1)
def _server() -> tuple[str, int]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address: tuple[str, int] = server.get_host_and_port()
    raw_client(address).create_bucket(Bucket=BUCKET)
    return address


@target
def object_store(rng: random.Random, directory: Path) -> None:
    """Read the contents of the object store as every command would."""
    from tests.fuzz.targets.artifacts import artifact

    client, prefix = raw_client(_server()), "fuzz"
    outside = {f"{prefix}/outside/manifest.json", f"{prefix}/inside-not", f"{prefix}/x.json"}
    for name in outside:
        client.put_object(Bucket=BUCKET, Key=name, Body=b"{}")
    (directory / "secret").write_text("secret")
    made = artifact(directory / "made", {"coefficients.json": b"{}", "model.safetensors": b"x" * 50})
    before = _files(directory)

    def put(name: str, content: bytes) -> None:
        with suppress(ClientError):  # a key that this server rejects
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/inside/{name}", Body=content)

    if rng.random() < 0.7:
        _forge(rng, made, put, directory)
    for name in rng.sample(KEYS, rng.randrange(6)):
        fields = rng.choice([{"model_type": "llama"}, {"artifacts": [name]}])
        put(name, rng.choice([b"", b"{}", b"[", json_text(rng, fields)]))
    before_environment = dict(os.environ)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": "us-east-1",
        "XFT_S3_ENDPOINT_URL": "http://{}:{}".format(*_server()), "XFT_STORE": f"s3://{BUCKET}/{prefix}/inside",
        "XFT_HOME": str(directory / "home")}
    try:
        _use(rng)
    finally:
        os.environ.clear()
        os.environ |= before_environment
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix + "/")
        there = {item["Key"] for page in pages for item in page.get("Contents", ())}
        for name in there:
            client.delete_object(Bucket=BUCKET, Key=name)
    assert outside <= there, f"removed outside of the prefix: {outside - there}"
    assert {name for name in there if not name.startswith(f"{prefix}/inside/")} == outside, "written outside of the prefix"
    found = _files(directory)
    assert {name: found[name] for name in found if not name.startswith("home/")} == before, "written outside of XFT_HOME"


def _forge(rng: random.Random, made: Path, put: Callable[[str, bytes], Any], directory: Path) -> None:
    """Forge an artifact and a checkpoint with matching checksums, at the places where they are looked up."""
    from tasks.object_store.file_sets import DIGEST_LENGTH

    content = json.loads((made / "manifest.json").read_bytes()) | {"key": KEY}
    path = rng.choice([*(name for name in NAMES if not name.startswith("/")), str(directory / "absolute"), "manifest.json",
                       "a/b.json", "../../../../relative.json", "key", "../x.partial/key"])
    forged = dict(rng.choice(content["files"])) | {"path": path}
    files = [*content["files"], forged] if rng.random() < 0.5 else [forged]
    content = {**(changed(rng, content) if rng.random() < 0.3 else content), "files": files}
    for kind in ("artifacts/mix", "checkpoints/sft"):
        place = f"{kind}/{KEY[:32]}"
        name = digest_of([[entry["path"], entry["sha256"]] for entry in files])[:DIGEST_LENGTH] if _is_text(path) else "x"
        for entry in files:
            if _is_text(entry["path"]) and len(entry["path"]) < 900:
                source = made / ("model.safetensors" if entry["size"] == 50 else "coefficients.json")
                put(f"{place}/{name}/{entry['path']}", source.read_bytes())
        if kind.startswith("checkpoints"):
            text = json.dumps({"key": KEY, "files": files})
        else:
            try:
                content["digest"] = digest_of([[entry["path"], entry["sha256"]] for entry in files])
                content["sha256"] = digest_of({field: item for field, item in content.items() if field != "sha256"})
            except ValueError:  # a number that JSON cannot express, or text that UTF-8 cannot
                pass
            text = json.dumps(content)
        put(f"{place}/manifest.json", text.encode())


def _use(rng: random.Random) -> None:
    """Use two of the functions that read the object store or remove objects from it."""
    from tasks.object_store import artifacts as remote
    from tasks.object_store import checkpoints, models, upkeep
    from tasks.settings import settings

    never, logger = threading.Event(), logging.getLogger("tests.fuzz")
    artifacts = settings().artifacts
    bucket = upkeep.bucket_in_force()
    uses: list[Callable[[], Any]] = [
        lambda: checkpoints.restore(artifacts / "sft" / KEY[:32], KEY, never, logger),
        lambda: upkeep.remote_artifacts(bucket), lambda: list(upkeep.verify_remote(bucket)),
        lambda: remote.fetch(artifacts / "mix" / KEY[:32], KEY, never),
        lambda: models.fetch(settings().store or "", never, logger),
        lambda: [item.remove() for item in upkeep.garbage_remote(bucket, 0)]]  # type: ignore[func-returns-value]
    for use in rng.sample(uses, 2):
        try:
            use()
        except XftError as error:
            assert str(error).strip()


def _is_text(text: str) -> bool:
    try:
        return "\0" not in text and bool(text.encode())
    except UnicodeEncodeError:
        return False


def _files(directory: Path) -> dict[str, str]:
    return {path.relative_to(directory.parent).as_posix().partition("/")[2]: file_digest(path)
            for path in directory.parent.rglob("*") if path.is_file()}
