"""Flip one bit in the files of a complete run, here and in the object store: the flip is found, everything that contains it is
rebuilt, and every artifact gets its old bits back."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.flows.conftest import RECIPE, REPOSITORY
from tests.reliability import checks
from tests.reliability.runs import finished, start
from tests.tasks.object_store.proxy import BUCKET, Proxy, raw_client
from tests.xft_core.store.test_integrity import flip
from xft_core.store.artifacts import find, verify
from xft_core.store.manifest import read_manifest

pytestmark = pytest.mark.slow
STAGES = 15  # two of them may share an artifact: models that give the same answers are evaluated once
KINDS = {
    "manifest.json", "model.safetensors", "config.json", "tokenizer.json", "metrics.jsonl", "train.safetensors",
    "held_out.jsonl", "coefficients.json", "router.json", "samples.jsonl", "results.json", "comparison.json", "comparison.md"}


def artifacts(home: Path) -> list[Path]:
    """Return the artifacts in use, without the damaged ones that were set aside."""
    return [path for path in checks.artifacts(home) if ".damaged" not in path.name]


def made_of_bits(home: Path) -> dict[str, str]:
    """Return the digest of every artifact except the report, which contains times. Verifies all files."""
    return {f"{path.parent.name}/{path.name}": verify(path).digest for path in artifacts(home) if path.parent.name != "report"}


def files(artifact: Path) -> list[Path]:
    return [path for path in sorted(artifact.rglob("*")) if path.is_file() and path.stat().st_size]


def reused(output: str) -> int:
    """Return how many stages the run reused."""
    found = re.search(rf"^done(?: \((\d+) of {STAGES} stages reused\))?$", output, re.MULTILINE)
    assert found, output
    return int(found[1] or 0)


def test_a_bit_that_flips_is_found_and_what_it_spoiled_made_again(s3: Proxy, tmp_path: Path) -> None:
    home, recipe, rng = tmp_path / "home", tmp_path / "recipe.yaml", random.Random(0)
    recipe.write_text(yaml.safe_dump(RECIPE | {"baseline": {"enabled": True}}))
    finished(start(home, recipe))
    expected = made_of_bits(home)
    assert {path.name for artifact in artifacts(home) for path in files(artifact)} >= KINDS
    every_file_alone(home, rng)

    chosen = {artifact: rng.choice(files(artifact)) for artifact in artifacts(home)}
    weights = {path: path.read_bytes() for artifact in chosen for path in files(artifact) if path.suffix == ".safetensors"}
    for path in [*chosen.values(), next((home / "runs").glob("*.json"))]:
        flip(path, rng)
    spoiled = {path: path.read_bytes() for path in chosen.values()}
    assert reused(finished(start(home, recipe, XFT_STORE=""))) == 0
    assert made_of_bits(home) == expected
    assert all(path.read_bytes() == content for path, content in weights.items())
    for artifact, path in chosen.items():
        kept = artifact.with_name(f"{artifact.name}.damaged") / path.relative_to(artifact)
        assert kept.read_bytes() == spoiled[path], f"{path} is not kept as it was found"

    damaged = spoil_objects(s3, rng)
    assert len(damaged) == len(chosen)
    assert reused(finished(start(tmp_path / "other", recipe))) == 0
    assert made_of_bits(tmp_path / "other") == expected
    verified = subprocess.run(
        [sys.executable, "-m", "flows.cli", "store", "verify", "--s3"], cwd=REPOSITORY, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def every_file_alone(home: Path, rng: random.Random) -> None:
    """Flip one bit in each file of each artifact in turn, check that it is found, and restore everything."""
    for artifact in artifacts(home):
        key = read_manifest(artifact).key
        for path in files(artifact):
            whole = path.read_bytes()
            flip(path, rng)
            assert find(artifact, key) is None, f"a bit that flipped in {path} was not found"
            artifact.with_name(f"{artifact.name}.damaged").rename(artifact)
            path.write_bytes(whole)
        assert find(artifact, key)


def spoil_objects(s3: Proxy, rng: random.Random) -> dict[str, str]:
    """Flip one bit in one object of each artifact in the object store. Return the object's key by the artifact's name."""
    client = raw_client(s3.target)
    objects: dict[str, list[str]] = {}
    for item in client.list_objects_v2(Bucket=BUCKET)["Contents"]:
        if (artifact := re.search(r"/artifacts/(\w+/\w+)/", item["Key"])) and item["Size"]:
            objects.setdefault(artifact[1], []).append(item["Key"])
    chosen = {artifact: rng.choice(keys) for artifact, keys in objects.items()}
    for key in chosen.values():
        content = bytearray(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        client.put_object(Bucket=BUCKET, Key=key, Body=bytes(content))
    return chosen
