"""One bit flips in every kind of file that a whole run left: each is found, what it is part of is made again, and every
artifact has the bits that it had."""

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
from tests.tasks.object_store import BUCKET, Proxy, raw_client
from tests.xft_core.test_integrity import flip
from xft_core.artifacts import verify

pytestmark = pytest.mark.slow
STAGES = 15  # of which two may have one artifact: models that give the same answers are evaluated once


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"baseline": {"enabled": True}}))
    return path


def reused(output: str) -> int:
    """How many stages the run found made already."""
    found = re.search(rf"^done(?: \((\d+) of {STAGES} stages reused\))?$", output, re.MULTILINE)
    assert found, output
    return int(found[1] or 0)


def artifacts(home: Path) -> list[Path]:
    """Those that count, without what was set aside."""
    return [path for path in checks.artifacts(home) if ".damaged" not in path.name]


def made_of_bits(home: Path) -> dict[str, str]:
    """Digest of every artifact but the report, which tells times; all its files are verified."""
    return {f"{path.parent.name}/{path.name}": verify(path).digest for path in artifacts(home) if path.parent.name != "report"}


def one_of_each_kind(home: Path, known: set[str], rng: random.Random) -> list[Path]:
    """At most one file of each artifact, each of a kind (its name, in its stage) that is not in ``known``, which grows."""
    chosen = []
    for artifact in artifacts(home):
        files = {f"{artifact.parent.name}/{path.relative_to(artifact)}": path
                 for path in sorted(artifact.rglob("*")) if path.is_file() and path.stat().st_size}
        if fresh := sorted(files.keys() - known):
            kind = rng.choice(fresh)
            known.add(kind)
            chosen.append(files[kind])
    return chosen


def test_in_every_kind_of_file_of_the_local_store(tmp_path: Path, recipe: Path) -> None:
    home, rng = tmp_path / "home", random.Random(0)
    finished(start(home, recipe))
    expected, known = made_of_bits(home), set[str]()
    while chosen := one_of_each_kind(home, known, rng):
        before = {path: path.read_bytes() for path in chosen}
        for path in chosen:
            flip(path, rng)
        spoiled = {path: path.read_bytes() for path in chosen}
        output = finished(start(home, recipe))
        assert reused(output) <= STAGES - len(chosen), [str(path) for path in chosen]
        assert made_of_bits(home) == expected
        for path in chosen:
            artifact = next(parent for parent in path.parents if parent.parent.parent == home / "artifacts")
            kept = [copy / path.relative_to(artifact) for copy in artifact.parent.glob(f"{artifact.name}.damaged*")]
            assert spoiled[path] in [copy.read_bytes() for copy in kept], f"{path} is not kept as it was found"
            if path.suffix in (".safetensors", ".jinja"):
                assert path.read_bytes() == before[path]
    names = {Path(kind).name for kind in known}
    assert {"manifest.json", "model.safetensors", "config.json", "tokenizer.json", "metrics.jsonl", "train.safetensors",
            "held_out.jsonl", "coefficients.json", "router.json", "samples.jsonl", "results.json", "comparison.json",
            "comparison.md"} <= names
    record = next((home / "runs").glob("*.json"))
    flip(record, rng)
    assert reused(finished(start(home, recipe))) == STAGES


def test_in_the_object_store(s3: Proxy, tmp_path: Path, recipe: Path) -> None:
    finished(start(tmp_path / "first", recipe))
    expected, rng, client = made_of_bits(tmp_path / "first"), random.Random(0), raw_client(s3.target)
    for home, pattern in ((tmp_path / "second", r"/manifest\.json$"), (tmp_path / "third", r"\.(safetensors|jsonl)$")):
        damaged = {}
        for item in client.list_objects_v2(Bucket=BUCKET)["Contents"]:
            stage = re.search(r"/artifacts/(\w+/\w+)/", item["Key"])
            if stage and re.search(pattern, item["Key"]) and stage[1] not in damaged:
                damaged[stage[1]] = item["Key"]
                file = tmp_path / "object"
                file.write_bytes(client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read())
                flip(file, rng)
                client.put_object(Bucket=BUCKET, Key=item["Key"], Body=file.read_bytes())
        assert len(damaged) > STAGES // 2
        assert reused(finished(start(home, recipe))) <= STAGES - len(damaged)
        assert made_of_bits(home) == expected
        verified = subprocess.run(
            [sys.executable, "-m", "flows.cli", "store", "verify", "--s3"], cwd=REPOSITORY, capture_output=True, text=True)
        assert verified.returncode == 0, verified.stdout + verified.stderr
