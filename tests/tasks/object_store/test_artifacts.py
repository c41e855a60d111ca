"""Artifacts and checkpoints that another machine finds: a second home here, the same real S3 server over HTTP."""

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flows.commands import store as store_command
from flows.options import parser
from tasks.execution import carry_out
from tasks.object_store import artifacts, checkpoints, run_records, upkeep
from tasks.object_store.bucket import StoreRefused, StoreUnavailable, store
from tasks.references import PipelineRun
from tests.tasks.object_store.proxy import BUCKET, Proxy, fail_first, flipped, raw_client
from xft_core.errors import ArtifactError
from xft_core.files.disk import locked
from xft_core.stages.configs import UpcycleStage
from xft_core.store.artifacts import publish, verify
from xft_core.store.workspace import Workspace

KEY = "0123456789abcdef" * 4
NEVER = threading.Event()
logger = logging.getLogger("tests.remote")


def make(home: Path, curve: str = "{}\n", stage: str = "sft", key: str = KEY) -> Path:
    """Publish a small artifact as a stage would."""
    output = home / "artifacts" / stage / key[:32]
    workspace = Workspace(output)
    workspace.root.mkdir(parents=True)
    workspace.prepare()
    (workspace.output / "model.safetensors").write_bytes(b"weights" * 10_000)
    (workspace.output / "tokenizer").mkdir()
    (workspace.output / "tokenizer" / "vocab.json").write_text("{}")
    workspace.metrics_path.write_text(curve)
    publish(workspace, output, stage=stage, stage_version=1, key=key, parents={}, config={}, metrics={},
            provenance={"prefect_flow_run_id": "flow-1"}, seconds=1)
    return output


def elsewhere(tmp_path: Path, name: str = "second", stage: str = "sft") -> Path:
    return tmp_path / name / "artifacts" / stage / KEY[:32]


def objects(s3: Proxy) -> dict[str, int]:
    found = raw_client(s3.target).list_objects_v2(Bucket=BUCKET).get("Contents", ())
    return {item["Key"].removeprefix("some/prefix/"): item["Size"] for item in found}


def object_of(s3: Proxy, ending: str) -> str:
    name, = (name for name in objects(s3) if name.endswith(ending))
    return "some/prefix/" + name


def test_nothing_is_asked_for_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XFT_STORE", raising=False)
    output = make(tmp_path)
    assert not artifacts.deliver(output, NEVER)
    assert artifacts.fetch(elsewhere(tmp_path), KEY, NEVER) is None
    assert not checkpoints.restore(elsewhere(tmp_path), KEY, NEVER, logger)


def test_another_machine_reuses_it_whole(s3: Proxy, tmp_path: Path) -> None:
    output = make(tmp_path / "first")
    assert artifacts.deliver(output, NEVER)
    assert not artifacts.deliver(output, NEVER)  # already there: one request, nothing sent
    found = artifacts.fetch(elsewhere(tmp_path), KEY, NEVER)
    assert found is not None and found == verify(output) == verify(elsewhere(tmp_path))
    assert [path.name for path in elsewhere(tmp_path).parent.iterdir() if path.is_dir()] == [KEY[:32]]


def test_the_manifest_comes_last_and_half_an_upload_does_not_count(
    s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = make(tmp_path / "first")
    s3.fault = lambda request: "400 BadDigest" if request.method == "PUT" and "manifest" in request.path else None
    with pytest.raises(StoreUnavailable):
        artifacts.deliver(output, NEVER)
    assert len(objects(s3)) == 3
    assert artifacts.fetch(elsewhere(tmp_path), KEY, NEVER) is None
    assert verify(output)  # the local artifact is never touched
    s3.fault, sent = None, s3.count("PUT", "model.safetensors")
    assert artifacts.deliver(output, NEVER)
    assert s3.count("PUT", "model.safetensors") == sent  # objects already sent are not sent again
    assert artifacts.fetch(elsewhere(tmp_path), KEY, NEVER)


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json", "manifest.json"])
def test_a_bit_that_flips_on_the_way_there_is_noticed_at_once(s3: Proxy, tmp_path: Path, name: str) -> None:
    """Servers accept content with a wrong checksum, so the stored object is compared before it counts."""
    output = make(tmp_path / "first")
    s3.fault = fail_first(9, "flip request", lambda request: request.method == "PUT" and name in request.path)
    with pytest.raises(StoreUnavailable) as caught:
        artifacts.deliver(output, NEVER)
    assert caught.value.may_pass
    assert "artifacts/sft/" + KEY[:32] + "/manifest.json" not in objects(s3)
    s3.fault = None
    assert artifacts.deliver(output, NEVER)
    assert artifacts.fetch(elsewhere(tmp_path), KEY, NEVER)


def test_one_flip_on_the_way_there_is_sent_again(s3: Proxy, tmp_path: Path, s3_name: str) -> None:
    s3.fault = fail_first(1, "flip request", lambda request: request.method == "PUT" and "safetensors" in request.path)
    output = make(tmp_path / "first")
    if s3_name == "ceph":  # which refuses it; boto3 does not retry this refusal
        with pytest.raises(StoreUnavailable, match="XAmzContentSHA256Mismatch"):
            artifacts.deliver(output, NEVER)
    assert artifacts.deliver(output, NEVER)
    assert artifacts.fetch(elsewhere(tmp_path), KEY, NEVER)


def test_what_was_altered_here_is_not_sent(s3: Proxy, tmp_path: Path) -> None:
    output = make(tmp_path / "first")
    (output / "model.safetensors").write_bytes(flipped((output / "model.safetensors").read_bytes()))
    with pytest.raises(ArtifactError, match=r"model\.safetensors.* was altered"):
        artifacts.deliver(output, NEVER)
    assert objects(s3) == {}


def test_a_damaged_manifest_in_the_store_is_no_delivery(s3: Proxy, tmp_path: Path) -> None:
    output = make(tmp_path / "first")
    artifacts.deliver(output, NEVER)
    name = object_of(s3, "manifest.json")
    raw_client(s3.target).put_object(Bucket=BUCKET, Key=name, Body=flipped((output / "manifest.json").read_bytes()))
    assert artifacts.deliver(output, NEVER)
    assert artifacts.fetch(elsewhere(tmp_path), KEY, NEVER)


def test_gc_goes_on_where_uploads_cannot_be_listed(
    s3: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
) -> None:
    artifacts.deliver(make(tmp_path / "first"), NEVER)
    time.sleep(1.1)  # S3 timestamps have whole seconds
    for answer in ("501 NotImplemented", "405 MethodNotAllowed", "403 AccessDenied"):
        caplog.clear()
        s3.fault = lambda request, answer=answer: answer if "uploads" in request.path and request.method == "GET" else None
        status, text = store_says(capsys, "gc", "--s3", "--days", "0")
        assert status == 0 and "1 to remove" in text
        assert "Unfinished uploads cannot be listed" in caplog.text and answer.split()[1] in caplog.text


def test_asking_for_a_lock_empties_no_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.lock"
    file.write_text("of somebody")
    with locked(tmp_path / "mine", wait=False) as is_free:
        assert is_free
    assert file.read_text() == "of somebody"


@pytest.mark.parametrize("spoil", ["truncated", "altered", "gone", "manifest altered", "manifest cut", "path outside"])
def test_damage_is_noticed_removed_and_rebuilt(s3: Proxy, tmp_path: Path, spoil: str) -> None:
    output = make(tmp_path / "first")
    artifacts.deliver(output, NEVER)
    client = raw_client(s3.target)
    weights, manifest = object_of(s3, "model.safetensors"), object_of(s3, "manifest.json")
    content = (output / "model.safetensors").read_bytes()
    text = (output / "manifest.json").read_text()
    outside = json.loads(text)
    outside["files"][0]["path"] = "../../../outside"
    name, body = {
        "truncated": (weights, content[:1000]), "altered": (weights, b"X" + content[1:]), "gone": (weights, None),
        "manifest altered": (manifest, text.replace('"size": 2', '"size": 3').encode()),
        "manifest cut": (manifest, text[:200].encode()), "path outside": (manifest, json.dumps(outside).encode()),
    }[spoil]
    if body is None:
        client.delete_object(Bucket=BUCKET, Key=name)
    else:
        client.put_object(Bucket=BUCKET, Key=name, Body=body)
    assert artifacts.fetch(elsewhere(tmp_path), KEY, NEVER) is None
    assert not elsewhere(tmp_path).exists()
    assert not list(tmp_path.rglob("outside"))
    assert objects(s3) == {}
    assert artifacts.deliver(output, NEVER)  # as the machine that rebuilt it does
    assert artifacts.fetch(elsewhere(tmp_path), KEY, NEVER)


def test_a_download_that_is_cut_goes_on(s3: Proxy, tmp_path: Path) -> None:
    artifacts.deliver(make(tmp_path / "first"), NEVER)
    s3.fault = fail_first(2, "cut response", lambda request: request.method == "GET" and "safetensors" in request.path)
    assert artifacts.fetch(elsewhere(tmp_path), KEY, NEVER)


def test_two_publishers_at_once_leave_one_whole_artifact(s3: Proxy, tmp_path: Path) -> None:
    """Their curves differ (times of day), and so do their manifests. The remaining manifest must match its files."""
    outputs = [make(tmp_path / name, curve=f'{{"time": {number}}}\n') for number, name in enumerate(("a", "b", "c"))]
    together = threading.Barrier(len(outputs))

    def hold(request: Any) -> None:  # all files have been sent and no manifest yet: now all publish at once
        if request.method == "PUT" and "manifest.json" in request.path:
            together.wait(60)

    s3.fault = hold
    results: list[bool] = []

    def publish_one(output: Path) -> None:
        results.append(artifacts.deliver(output, NEVER))

    threads = [threading.Thread(target=publish_one, args=[output]) for output in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and results.count(True) == 1
    assert sum(name.endswith("model.safetensors") for name in objects(s3)) == 1
    found = artifacts.fetch(elsewhere(tmp_path, "d"), KEY, NEVER)
    assert found is not None and found == verify(elsewhere(tmp_path, "d"))


def test_the_same_key_of_another_artifact_is_not_taken(s3: Proxy, tmp_path: Path) -> None:
    artifacts.deliver(make(tmp_path / "first"), NEVER)
    assert artifacts.fetch(elsewhere(tmp_path), KEY[:32] + "f" * 32, NEVER) is None


def progress(home: Path, step: int) -> Path:
    """Write a training stage's work in progress up to ``step``, as xft_core.training.trainer leaves it."""
    output = home / "artifacts" / "sft" / KEY[:32]
    workspace = Workspace(output)
    workspace.checkpoints.mkdir(parents=True, exist_ok=True)
    (workspace.root / "key").write_text(KEY)
    (workspace.checkpoints / "held_out_before.jsonl").write_text("1.5")
    (workspace.checkpoints / "empty.json").touch()
    workspace.metrics_path.write_text("".join(f'{{"step": {i}}}\n' for i in range(step)))
    checkpoint = workspace.checkpoints / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(bytes([step]) * 1000)
    (checkpoint / "whole").touch()
    half = workspace.checkpoints / f"checkpoint-{step + 1}"
    half.mkdir(exist_ok=True)
    (half / "model.safetensors").write_bytes(b"half")
    return output


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(checkpoints, "BETWEEN_UPLOADS_SECONDS", 0.05)


def wait_for(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoint_there(s3: Proxy, step: int) -> bool:
    """Return whether the manifest names that step's checkpoint, and no files of earlier steps are left."""
    names = [name for name in objects(s3) if name.startswith("checkpoints/")]
    places = {name.split("/")[3] for name in names} - {"manifest.json"}
    manifest = store().get(f"checkpoints/sft/{KEY[:32]}/manifest.json") or b""  # type: ignore[union-attr]
    return f"checkpoint-{step}/whole".encode() in manifest and len(places) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_checkpoints_follow_to_another_machine(s3: Proxy, tmp_path: Path) -> None:
    output = progress(tmp_path / "first", 5)
    with checkpoints.Keeper(output, KEY, logger):
        time.sleep(0.2)
        assert objects(s3) == {}  # checkpoints from before the start came from the store or are not new
        progress(tmp_path / "first", 9)
        wait_for(lambda: checkpoint_there(s3, 9))
        progress(tmp_path / "first", 12)
        wait_for(lambda: checkpoint_there(s3, 12))
    assert checkpoints.restore(elsewhere(tmp_path), KEY, NEVER, logger)
    workspace = Workspace(elsewhere(tmp_path))
    found = sorted(path.relative_to(workspace.root).as_posix() for path in workspace.root.rglob("*") if path.is_file())
    assert found == ["checkpoints/checkpoint-12/model.safetensors", "checkpoints/checkpoint-12/whole",
                     "checkpoints/held_out_before.jsonl", "key", "metrics.jsonl"]
    assert (workspace.checkpoints / "checkpoint-12" / "model.safetensors").read_bytes() == bytes([12]) * 1000
    assert (workspace.root / "key").read_text() == KEY
    assert not checkpoints.restore(elsewhere(tmp_path), KEY, NEVER, logger)  # local progress takes precedence
    assert not list(tmp_path.rglob("*.xft-transfer-*"))
    artifacts.deliver(make(tmp_path / "third"), NEVER)
    assert not [name for name in objects(s3) if name.startswith("checkpoints/")]


@pytest.mark.usefixtures("quick")
def test_a_store_that_is_away_does_not_hold_up_the_stage(
    s3: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    s3.fault = lambda request: "400 BadDigest"
    with checkpoints.Keeper(progress(tmp_path / "first", 1), KEY, logger):
        progress(tmp_path / "first", 3)
        wait_for(lambda: len(s3.requests) > 3)
        s3.fault = None
        wait_for(lambda: checkpoint_there(s3, 3))
    assert sum("the run continues" in record.message for record in caplog.records) == 1


def test_an_artifact_not_sent_is_a_warning_but_a_refusal_an_error(
    s3: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    config = UpcycleStage(output=make(tmp_path / "first"))
    s3.fault = lambda request: "400 BadDigest"
    carry_out._deliver(config, NEVER, logger)
    assert "Not sent to the store yet; the run continues." in caplog.text
    s3.fault = lambda request: "400 ExpiredToken"
    with pytest.raises(StoreRefused, match="ExpiredToken"):
        carry_out._deliver(config, NEVER, logger)
    assert verify(config.output)


@pytest.mark.usefixtures("quick")
def test_a_damaged_checkpoint_is_not_used(s3: Proxy, tmp_path: Path) -> None:
    with checkpoints.Keeper(progress(tmp_path / "first", 1), KEY, logger):
        progress(tmp_path / "first", 3)
        wait_for(lambda: checkpoint_there(s3, 3))
    raw_client(s3.target).put_object(Bucket=BUCKET, Key=object_of(s3, "model.safetensors"), Body=b"")
    assert not checkpoints.restore(elsewhere(tmp_path), KEY, NEVER, logger)
    assert objects(s3) == {}
    assert not Workspace(elsewhere(tmp_path)).root.exists()


def store_says(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = store_command.run(parser().parse_args(["store", *arguments]))
    return status, capsys.readouterr().out


@pytest.mark.parametrize("where", [(), ("--s3",)])
def test_list_verify_and_clean(
    s3: Proxy, tmp_path: Path, run: PipelineRun, capsys: pytest.CaptureFixture[str], where: tuple[str, ...],
) -> None:
    home = tmp_path / "home"
    used, unused = make(home, stage="merge"), make(home, stage="mix")
    for output in (used, unused):
        artifacts.deliver(output, NEVER)
    run_records.note(run, f"merge/{used.name}")
    status, text = store_says(capsys, "ls", *where)
    assert status == 0
    assert "merge  0123456789abcdef0123456789abcdef  70.0 kB" in text and "2 artifacts, 140.0 kB" in text
    assert store_says(capsys, "verify", *where)[0] == 0

    def names() -> set[str]:
        found = upkeep.remote_artifacts(_bucket()) if where else upkeep.local_artifacts()
        return {item.stage for item in found}

    assert "0 to remove" in store_says(capsys, "gc", *where)[1]  # younger than 30 days
    time.sleep(1.1)  # S3 timestamps have whole seconds
    run_records.note(run)
    days = ("--days", str(0.5 / 86400))
    text = store_says(capsys, "gc", *where, *days)[1]
    assert f"mix/{unused.name}" in text and "merge/" not in text and "add --yes" in text
    assert names() == {"merge", "mix"}
    run_records.note(run)
    assert "Removed" in store_says(capsys, "gc", "--yes", *where, *days)[1]
    assert names() == {"merge"}

    if where:
        raw_client(s3.target).put_object(Bucket=BUCKET, Key=object_of(s3, "model.safetensors"), Body=b"")
    else:
        (used / "model.safetensors").write_bytes(b"")
    status, text = store_says(capsys, "verify", *where)
    assert status == 1 and "damaged  merge/" in text


def test_what_another_version_sent_is_left_there(s3: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = make(tmp_path / "first")
    manifest = output / "manifest.json"
    whole = manifest.read_bytes()
    artifacts.deliver(output, NEVER)
    other = json.dumps(json.loads(whole) | {"schema_version": 3}).encode()
    raw_client(s3.target).put_object(Bucket=BUCKET, Key=object_of(s3, "manifest.json"), Body=other)
    there = objects(s3)
    assert artifacts.fetch(elsewhere(tmp_path), KEY, NEVER) is None
    assert "(schema 3, here 2). It is left there and rebuilt here." in caplog.text
    assert not artifacts.deliver(output, NEVER)
    assert objects(s3) == there


def test_objects_that_others_put_there_stop_no_command_and_are_left_alone(s3: Proxy, tmp_path: Path) -> None:
    artifacts.deliver(make(tmp_path / "first"), NEVER)
    names = {"artifacts/sft/../../outside/manifest.json", "artifacts/sft/\x01/manifest.json", "runs/../x.json", "runs//x.json",
             "checkpoints/sft/../../outside/x", "artifacts/sft/a\\..\\b/manifest.json"}
    client = raw_client(s3.target)
    for name in names:
        client.put_object(Bucket=BUCKET, Key=f"some/prefix/{name}", Body=b"{}")
    there = objects(s3).keys()
    strange = {name for name in there if name in names}
    assert strange, "this server takes no such keys"
    bucket = _bucket()
    assert len(upkeep.remote_artifacts(bucket)) == 1
    assert [problem for _, problem in upkeep.verify_remote(bucket)] == [None]
    time.sleep(1.1)  # S3 timestamps have whole seconds
    for item in upkeep.garbage_remote(bucket, 0):
        item.remove()
    assert objects(s3).keys() == strange


@pytest.mark.slow
def test_a_run_notes_what_it_uses_also_for_other_machines(s3: Proxy, run: PipelineRun) -> None:
    run_records.note(run)
    run_records.note(run, "sft/abc")
    run_records.note(run, "mix/def")
    (_, record), = run_records.records_in(_bucket()).values()
    assert record == next(iter(run_records.local_records().values()))
    assert record is not None
    assert (record.recipe, record.artifacts) == ("tiny", ["mix/def", "sft/abc"])


def _bucket() -> Any:
    found = store()
    assert found is not None
    return found


def test_a_damaged_record_keeps_gc_from_removing_anything(
        tmp_path: Path, run: PipelineRun, s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_HOME", str(tmp_path / "home"))
    run_records.note(run, "sft/a1")
    path, = run_records.local_records()
    whole = path.read_bytes()
    assert upkeep.garbage_local(0.001) == []
    path.write_bytes(whole.replace(b"sft/a1", b"sft/a0"))
    assert run_records.local_records() == {path: None}
    with pytest.raises(ArtifactError, match=r"run record .*damaged.*nothing is removed"):
        upkeep.garbage_local(1)
    name, = run_records.records_in(_bucket())
    _bucket().put(name, b"[")
    with pytest.raises(ArtifactError, match=r"run record .*damaged"):
        upkeep.garbage_remote(_bucket(), 1)
    path.unlink()
