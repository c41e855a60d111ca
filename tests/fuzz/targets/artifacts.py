"""Output of stages: artifacts, their manifests, and work in progress."""

import json
import random
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from tests.fuzz.target import target
from tests.fuzz.values import changed, json_text, spoiled
from xft_core.errors import XftError
from xft_core.store.manifest import Manifest, files_digest


def artifact(directory: Path, files: dict[str, bytes]) -> Path:
    """Create an artifact of mix with these files."""
    return Path(shutil.copytree(_published(tuple(files.items()))[1], directory / "artifact"))


@lru_cache(maxsize=4)
def _published(files: tuple[tuple[str, bytes], ...]) -> tuple[tempfile.TemporaryDirectory[str], Path]:
    from xft_core.store.artifacts import publish
    from xft_core.store.workspace import Workspace

    place = tempfile.TemporaryDirectory()
    output = Path(place.name) / "artifact"
    workspace = Workspace(output)
    workspace.keep_only_progress_of("k" * 64)
    workspace.prepare()
    for name, content in files:
        (workspace.output / name).write_bytes(content)
    publish(workspace, output, stage="mix", stage_version=1, key="k" * 64, parents={"benchmark": "0"}, config={"a": [1, 2.5]},
            metrics={"held_out_nll": 1.25}, provenance={"recipe": "demo"}, seconds=1.5)
    return place, output


@target
def manifest(rng: random.Random, directory: Path) -> None:
    """Read the manifest of an artifact, as found on disk."""
    from xft_core.reporting.inspect import describe
    from xft_core.store.artifacts import find, input_digest

    output = artifact(directory, {"coefficients.json": b"{}"})
    path = output / "manifest.json"
    path.write_bytes(json_text(rng, json.loads(path.read_bytes())))
    copy = shutil.copytree(output, directory / "copy", dirs_exist_ok=True)
    for read in (describe, input_digest):
        try:
            read(copy)
        except XftError:
            pass
    shutil.rmtree(copy)
    try:
        find(output, "k" * 64)
    finally:
        for damaged in directory.glob("artifact.damaged*"):
            shutil.rmtree(damaged)


@target
def manifest_that_agrees(rng: random.Random, directory: Path) -> None:
    """Read a forged manifest with correct checksums, as anyone who can write to the object store could leave it."""
    from pydantic import ValidationError

    from tasks.object_store.artifacts import checked_manifest
    from tasks.object_store.upkeep import _stored

    content = json.loads((artifact(directory, {"coefficients.json": b"{}"}) / "manifest.json").read_bytes())
    try:
        forged = Manifest.model_validate(changed(rng, content))
        forged = forged.model_copy(update={"digest": files_digest(forged.files)}).sealed()
        text = forged.model_dump_json().encode()
    except (ValidationError, ValueError):
        return
    found = checked_manifest(text, "s3://bucket/prefix")
    for entry in found.files:
        assert not Path(entry.path).is_absolute() and ".." not in Path(entry.path).parts
        inside = (directory / "store" / entry.path).resolve()
        assert inside.is_relative_to((directory / "store").resolve())
    _stored(found, "mix", "k" * 32)


@target
def snapshot(rng: random.Random, directory: Path) -> None:
    """Read the object store's description of a checkpoint."""
    from pydantic import ValidationError

    from tasks.object_store.checkpoints import Snapshot

    entry = {"path": "checkpoints/checkpoint-1/model.safetensors", "size": 1, "sha256": "0" * 64}
    try:
        found = Snapshot.model_validate_json(json_text(rng, {"key": "k", "files": [entry, entry | {"path": "key"}]}))
    except ValidationError:
        return
    assert all((directory / entry.path).resolve().is_relative_to(directory.resolve()) for entry in found.files)


@target
def work_in_progress(rng: random.Random, directory: Path) -> None:
    """Read lines, curves, run records and checkpoints of an earlier attempt. None of them may cause an error."""
    from tasks.object_store.run_records import _parse
    from tasks.tracking.follower import CurveFile
    from xft_core.files.journal import append, read_appended
    from xft_core.store.checkpoints import newest_whole, seal
    from xft_core.store.curves import read_metrics

    lines = directory / "lines.jsonl"
    lines.unlink(missing_ok=True)
    append(lines, {"task_id": "a"}, {"task_id": "b"})
    lines.write_bytes(spoiled(rng, lines.read_bytes()))
    assert all(row in ({"task_id": "a"}, {"task_id": "b"}) for row in read_appended(lines))
    curve = directory / "metrics.jsonl"
    curve.write_bytes(json_text(rng, {"step": 1, "time": 2.5, "metrics": {"loss": 1.0}}) + b"\n")
    for point in read_metrics(curve) + CurveFile(curve).new_points():
        assert isinstance(point["step"], int) and isinstance(point["metrics"], dict)
    record = {"flow_run_id": "f", "recipe": "r", "updated": 1.0, "artifacts": ["sft/a"], "sha256": ""}
    assert _parse(json_text(rng, record)) is None
    called = rng.choice(["checkpoint-3", "checkpoint-x", "checkpoint--1", "checkpoint-" + "9" * 30])
    checkpoint = directory / "checkpoints" / called
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "state.json").write_text("{}")
    seal(checkpoint)
    place = rng.choice(["whole", "state.json"])
    (checkpoint / place).write_bytes(spoiled(rng, (checkpoint / place).read_bytes()))
    found = newest_whole(directory / "checkpoints")
    assert found is None or (found / "state.json").read_bytes() == b"{}"
