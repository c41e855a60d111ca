"""Artifacts: complete or absent; damage is noticed; finished work is never lost."""

import errno
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from xft_core.errors import ArtifactError, DiskFullError
from xft_core.stages.base import StageConfig
from xft_core.stages.run import run_stage, stage_key
from xft_core.store import artifacts
from xft_core.store.artifacts import find, input_digest, verify
from xft_core.store.manifest import FileEntry, read_manifest
from xft_core.store.results.base import Metrics
from xft_core.store.workspace import Workspace


class CountingStage(StageConfig):
    """A stage that writes its text to a file and counts how often it ran."""

    stage, version, implementation = "counting", 1, "tests.xft_core.store.test_artifacts"
    text: str = "hello"
    path_fields: ClassVar[frozenset[str]] = frozenset()

    def inputs(self) -> dict[str, Path]:
        return {}


runs: list[str] = []


class CountingMetrics(Metrics):
    length: int = Field(description="Characters of the text [count]")


def run(config: CountingStage, workspace: Workspace) -> CountingMetrics:
    runs.append(config.text)
    if config.text == "fail":
        (workspace.output / "half").write_text("half")
        (workspace.checkpoints / "progress").write_text("1")
        raise OSError(errno.ENOSPC, "No space left on device")
    (workspace.output / "deep").mkdir()
    (workspace.output / "deep" / "file.txt").write_text(config.text)
    return CountingMetrics(length=len(config.text))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    runs.clear()


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    first = run_stage(CountingStage(output=tmp_path / "a"))
    second = run_stage(CountingStage(output=tmp_path / "a"))
    assert (first.reused, second.reused, runs) == (False, True, ["hello"])
    assert second.manifest == first.manifest and first.manifest.metrics == {"length": 5}
    assert not (tmp_path / "a.partial").exists()


def test_the_digest_is_of_the_contents_not_of_the_place(tmp_path: Path) -> None:
    digests = {run_stage(CountingStage(output=tmp_path / name)).manifest.digest for name in "ab"}
    assert len(digests) == 1
    assert run_stage(CountingStage(output=tmp_path / "c", text="other")).manifest.digest not in digests


@pytest.mark.parametrize("damage", ["alter", "truncate", "remove", "add", "manifest_cut", "flip_manifest_digest"])
def test_damage_is_noticed_and_rebuilt(damage: str, tmp_path: Path) -> None:
    output = tmp_path / "a"
    whole = run_stage(CountingStage(output=output)).manifest
    file, manifest = output / "deep" / "file.txt", output / "manifest.json"
    if damage == "alter":
        file.write_text("hellO")
    elif damage == "truncate":
        file.write_text("hell")
    elif damage == "remove":
        file.unlink()
    elif damage == "add":
        (output / "generation_config.json").write_text("{}")
    elif damage == "manifest_cut":
        manifest.write_text(manifest.read_text()[:100])
    else:
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"digest": "0" * 64}))
    with pytest.raises(ArtifactError):
        verify(output)
    again = run_stage(CountingStage(output=output))
    assert not again.reused and runs == ["hello", "hello"]
    assert again.manifest.digest == whole.digest and verify(output) == again.manifest
    assert (tmp_path / "a.damaged").is_dir()


def test_a_place_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="already contains something"):
        run_stage(CountingStage(output=tmp_path / "a"))
    assert (tmp_path / "a" / "thesis.tex").read_text() == "years of work" and runs == []
    run_stage(CountingStage(output=tmp_path / "b"))
    with pytest.raises(ArtifactError, match="already contains another artifact"):
        run_stage(CountingStage(output=tmp_path / "b", text="other"))
    assert read_manifest(tmp_path / "b").metrics == {"length": 5}
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "manifest.json").write_text('{"name": "my web app"}')
    with pytest.raises(ArtifactError, match="already contains something"):
        run_stage(CountingStage(output=tmp_path / "c"))
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["manifest.json"]


def test_a_damaged_artifact_of_another_key_is_refused_not_moved(tmp_path: Path) -> None:
    run_stage(CountingStage(output=tmp_path / "a"))
    (tmp_path / "a" / "deep" / "file.txt").write_text("damaged")
    with pytest.raises(ArtifactError, match="already contains another artifact"):
        run_stage(CountingStage(output=tmp_path / "a", text="other"))
    assert (tmp_path / "a").is_dir()


def test_notes_and_hidden_files_do_no_harm(tmp_path: Path) -> None:
    run_stage(CountingStage(output=tmp_path / "a"))
    for name in ("notes.md", ".DS_Store", ".nfs000"):
        (tmp_path / "a" / name).write_text("x")
    assert run_stage(CountingStage(output=tmp_path / "a")).reused


def test_an_artifact_of_another_version_is_rebuilt_and_called_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = run_stage(CountingStage(output=tmp_path / "a")).manifest
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 1}))
    with pytest.raises(ArtifactError, match=r"another version of this tool \(schema 1, here 2\). Delete the artifact to"):
        read_manifest(tmp_path / "a")
    assert run_stage(CountingStage(output=tmp_path / "a")).manifest.digest == whole.digest
    assert "(schema 1, here 2). It will be rebuilt; the damaged copy is kept as a.damaged." in caplog.text
    path.write_text(json.dumps({"schema_version": 1, "name": "of another tool"}))
    with pytest.raises(ArtifactError, match="is damaged: schema_version: "):
        read_manifest(tmp_path / "a")


@pytest.mark.parametrize("created", ["2026-13-01T00:00:00Z", "2026-01-01T25:00:00Z", "٢٠٢٦-01-01T00:00:00Z", "now"])
def test_a_manifest_whose_time_is_none_is_damaged(created: str, tmp_path: Path) -> None:
    manifest = run_stage(CountingStage(output=tmp_path / "a")).manifest.model_copy(update={"created": created}).sealed()
    (tmp_path / "a" / "manifest.json").write_text(manifest.model_dump_json())
    with pytest.raises(ArtifactError, match="is damaged: created: "):
        read_manifest(tmp_path / "a")


def test_every_damaged_copy_is_kept(tmp_path: Path) -> None:
    for _ in range(3):
        run_stage(CountingStage(output=tmp_path / "a"))
        (tmp_path / "a" / "deep" / "file.txt").write_text("damaged")
    run_stage(CountingStage(output=tmp_path / "a"))
    assert {path.name for path in tmp_path.glob("a.*")} == {"a.lock", "a.damaged", "a.damaged1", "a.damaged2"}


def test_what_a_kill_after_publishing_left_is_cleared(tmp_path: Path) -> None:
    run_stage(CountingStage(output=tmp_path / "a"))
    (tmp_path / "a.partial" / "checkpoints").mkdir(parents=True)
    assert run_stage(CountingStage(output=tmp_path / "a")).reused and not (tmp_path / "a.partial").exists()


def test_a_place_that_cannot_be_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot be written"):
        run_stage(CountingStage(output=tmp_path / "file" / "a"))


def test_an_altered_input_is_noticed(tmp_path: Path) -> None:
    run_stage(CountingStage(output=tmp_path / "a"))
    digest = input_digest(tmp_path / "a")
    (tmp_path / "a" / "deep" / "file.txt").write_text("hellO")
    with pytest.raises(ArtifactError, match="was altered"):
        input_digest(tmp_path / "a")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "manifest.json").write_text('{"name": "not ours"}')
    assert input_digest(tmp_path / "model") != digest


@pytest.mark.parametrize("name", ["gone", "a" * 4000, "../gone", "/gone", "a\0b"])
def test_an_input_that_is_no_path_is_said_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^Input '.{1,300} (does not exist|cannot be used as a path: .+)\."):
        input_digest(tmp_path / name)


def test_a_full_disk_is_said_so_and_progress_is_kept(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match=r"No space left while writing.*start the same command again"):
        run_stage(CountingStage(output=tmp_path / "a", text="fail"))
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "a.partial" / "checkpoints" / "progress").read_text() == "1"


def test_a_disk_that_fills_during_publish_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "sync", full)
        with pytest.raises(DiskFullError):
            run_stage(CountingStage(output=tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    assert not run_stage(CountingStage(output=tmp_path / "a")).reused
    assert verify(tmp_path / "a")


def test_progress_of_another_recipe_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError):
        run_stage(CountingStage(output=tmp_path / "a", text="fail"))
    run_stage(CountingStage(output=tmp_path / "a", text="other"))
    assert verify(tmp_path / "a").metrics == {"length": 5} and not (tmp_path / "a.partial").exists()


def test_the_key_follows_settings_inputs_and_version_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = stage_key(CountingStage(output=tmp_path / "a"))
    assert key == stage_key(CountingStage(output=tmp_path / "b", provenance={"run": "1"}))
    assert key != stage_key(CountingStage(output=tmp_path / "a", text="other"))
    assert key != stage_key(CountingStage(output=tmp_path / "a"), {"model": "0"})
    monkeypatch.setattr(CountingStage, "version", 2)
    assert key != stage_key(CountingStage(output=tmp_path / "a"))


def _work(output: str, queue: "multiprocessing.Queue[bool]") -> None:
    queue.put(run_stage(CountingStage(output=Path(output))).reused)


def test_two_processes_at_once_work_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[bool] = context.Queue()
    workers = [context.Process(target=_work, args=(str(tmp_path / "a"), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    reused = sorted(queue.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert reused == [False, True]
    assert find(tmp_path / "a", stage_key(CountingStage(output=tmp_path / "a"))) is not None


ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.xft_core.store.test_artifacts import CountingStage
from xft_core.errors import DiskFullError
from xft_core.stages.run import run_stage
from xft_core.store.artifacts import verify

disk = Path({disk!r})
failed = 0
for kilobytes in range(4, 160, 4):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={{kilobytes}}k", "tmpfs", str(disk)], check=True)
    try:
        run_stage(CountingStage(output=disk / "a", text="x" * 40_000))
        verify(disk / "a")
    except DiskFullError as error:
        assert "No space left while writing" in str(error) and not (disk / "a").exists()
        failed += 1
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        run_stage(CountingStage(output=disk / "a", text="x" * 40_000))
        verify(disk / "a")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
print("failed", failed)
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode != 0, reason="no user namespaces here")
def test_disks_of_every_size_are_full_at_every_moment(tmp_path: Path) -> None:
    """On full disks, 4 KB to 160 KB, each start gives a complete artifact or a message. With space, the next start succeeds."""
    (tmp_path / "disk").mkdir()
    script = ON_A_SMALL_DISK.format(root=str(Path(__file__).parents[3]), disk=str(tmp_path / "disk"))
    command = ["unshare", "-Urm", sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert 5 <= int(result.stdout.split()[-1]) < 39


def test_work_in_progress_that_no_stage_left_is_not_emptied(tmp_path: Path) -> None:
    notes = tmp_path / "a.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(ArtifactError, match=r"a\.partial' is reserved for work in progress, but contains something"):
        run_stage(CountingStage(output=tmp_path / "a"))
    assert notes.read_text() == "mine" and runs == []
    notes.unlink()
    (notes.parent / "key.tmp").touch()  # left by a kill before the first file was complete
    run_stage(CountingStage(output=tmp_path / "a"))


def test_a_file_that_is_called_as_a_lock_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text("mine")
    run_stage(CountingStage(output=tmp_path / "a"))
    assert (tmp_path / "a.lock").read_text() == "mine"


@pytest.mark.parametrize("target", ["elsewhere", "empty"])
def test_nothing_is_written_through_a_link(target: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / target)
    with pytest.raises(ArtifactError, match="already contains something"):
        run_stage(CountingStage(output=tmp_path / "a"))
    assert runs == [] and not (tmp_path / "elsewhere").exists() and not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("name", [
    "../x", "/etc/passwd", "a/../b", "a//b", "a\\b", "a\0b", "a\nb", "", ".", "x" * 901, "a/", "./a"])
def test_no_path_of_a_manifest_leads_out_of_its_artifact(name: str) -> None:
    with pytest.raises(ValueError, match="plain relative path"):
        FileEntry(path=name, size=1, sha256="0")


@pytest.mark.parametrize("output", ["/", "x\0", "y" * 4000])
def test_an_output_that_cannot_be_is_a_message(output: str, tmp_path: Path) -> None:
    with pytest.raises((ArtifactError, ValueError), match=r"cannot be written|NUL"):
        run_stage(CountingStage(output=Path(output) if output == "/" else tmp_path / output))
