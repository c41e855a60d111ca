"""MLflow's real model registry: one version for each model, and an alias that moves only to better ones."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.object_store import artifacts as remote
from tasks.object_store import upkeep
from tasks.references import ArtifactRef, PipelineRun
from tasks.tracking import champion as champions
from tasks.tracking import registry, runs
from tasks.tracking.client import client
from tasks.tracking.model import log_model
from tasks.tracking.registry import Registration
from tests.tasks.object_store.proxy import BUCKET, Proxy, raw_client
from tests.tasks.tracking.mlflow_server import DESTINATION
from xft_core.demo import DEMO_DIR
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.recipe.sections import Recipe
from xft_core.store.artifacts import publish
from xft_core.store.manifest import read_manifest
from xft_core.store.workspace import Workspace

CARD = "---\nlibrary_name: transformers\n---\n\n# tiny: XFT merged\n\nMade from `demo:model`.\n"
logger = logging.getLogger("tests.registry")


def artifact(root: Path, stage: str, role: str, files: dict[str, Path | str], **fields: Any) -> ArtifactRef:
    """Publish a small artifact as a stage would."""
    output = root / "artifacts" / stage / role
    shutil.rmtree(output, ignore_errors=True)
    workspace = Workspace(output)
    workspace.prepare()
    for name, content in files.items():
        if isinstance(content, Path):
            shutil.copyfile(content, workspace.output / name)
        else:
            (workspace.output / name).write_text(content)
    defaults: dict[str, Any] = {"parents": {}, "metrics": {}, "config": {}, "provenance": {}}
    manifest = publish(
        workspace, output, stage=stage, stage_version=1, key=role * 8, seconds=1.0, **(defaults | fields))
    return ArtifactRef(
        stage=stage, role=role, key=manifest.key, digest=manifest.digest, path=output, metrics=manifest.metrics,
        reused=False, mlflow_run_id=None)


def made(
    root: Path, model: str = "a", nll: float = 0.5, solved: float = 0.5, held_out: str = "rows", benchmark: str = "b" * 64,
    problems: int = 80, infrastructure_errors: int = 0,
) -> dict[str, ArtifactRef]:
    """Create the artifacts of a run that the registry reads. Two values of ``model`` give two different models."""
    files: dict[str, Path | str] = {path.name: path for path in (DEMO_DIR / "model").iterdir()}
    return {
        "prepare": artifact(root, "prepare", "prepare", {"held_out.safetensors": held_out}),
        "upcycle": artifact(root, "upcycle", "upcycle", {"x.json": "1"}, parents={"model": "d" * 64}),
        "merge": artifact(root, "merge", "merge", files | {"router.txt": model}, metrics={"held_out_nll": nll}),
        "evaluate_merged_0": artifact(
            root, "evaluate", "evaluate_merged_0", {"results.json": "{}"}, parents={"benchmark": benchmark},
            metrics={"plus_pass_at_1": solved, "problems": problems, "infrastructure_errors": infrastructure_errors}),
    }


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(CARD)
    return path


@pytest.fixture
def named(run: PipelineRun, request: pytest.FixtureRequest) -> PipelineRun:
    """Return the run with a recipe whose registered model belongs to this test alone."""
    return run.model_copy(update={"recipe": Recipe(name=request.node.originalname, experiment=run.recipe.experiment)})


def register(run: PipelineRun, artifacts: dict[str, ArtifactRef], **section: str) -> Registration:
    """Register with ``section`` as the recipe's section registry. By default, all models become versions."""
    changed = run.recipe.registry.model_copy(update={"register": "all", **section})
    run = run.model_copy(update={"recipe": run.recipe.model_copy(update={"registry": changed})})
    return registry.register(run, artifacts, CARD, True, remote.keep, logger)


def champion(name: str) -> int | None:
    found = client().get_registered_model(name).aliases.get("champion")
    return None if found is None else int(found)


@pytest.mark.slow
def test_a_registered_model_generates_text(
    named: PipelineRun, tmp_path: Path, card: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Load it with from_pretrained from the downloaded directory, and with both of MLflow's own loaders."""
    import mlflow

    artifacts = made(tmp_path)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.png").write_bytes(b"a picture")
    assert log_model(named, artifacts["merge"].path, card)
    found = register(named, artifacts)
    assert (found.version, found.champion) == (1, True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", runs.settings().tracking_uri)
    directory = Path(mlflow.artifacts.download_artifacts(f"models:/{named.recipe.name}@champion", dst_path=str(tmp_path)))
    assert generates(directory)
    assert (directory / "README.md").read_text() == CARD
    assert (directory / "plots" / "loss.png").read_bytes() == b"a picture"
    pipeline = mlflow.transformers.load_model(f"models:/{named.recipe.name}@champion")
    assert len(pipeline("def add(a, b):", max_new_tokens=4)[0]["generated_text"]) > len("def add(a, b):")
    model = mlflow.pyfunc.load_model(f"models:/{named.recipe.name}@champion")
    example = model.input_example
    text, = model.predict(example, params={"max_new_tokens": 4})
    assert text and example not in text
    assert "string" in str(model.metadata.signature)


def test_a_version_tells_where_it_comes_from(named: PipelineRun, tmp_path: Path) -> None:
    artifacts = made(tmp_path)
    register(named, artifacts)
    version = client().get_model_version(named.recipe.name, "1")
    assert version.run_id == named.mlflow_run_id
    assert version.description.startswith("# tiny: XFT merged")
    assert version.tags["xft.base_model.digest"] == "d" * 64
    assert version.tags["xft.data.digest"] == artifacts["prepare"].digest
    assert version.tags["xft.digest"] == read_manifest(artifacts["merge"].path).digest
    tags = client().get_run(named.mlflow_run_id).data.tags
    assert tags["xft.registered_model"] == f"{named.recipe.name}/1"
    assert tags["xft.champion"].startswith("yes: held-out loss 0.5000")


def test_nothing_is_copied_on_this_machines_disk(named: PipelineRun, tmp_path: Path, card: Path) -> None:
    artifacts = made(tmp_path)
    log_model(named, artifacts["merge"].path, card)
    log_model(named, artifacts["merge"].path, card)  # a retry
    source = artifacts["merge"].path / "model.safetensors"
    logged = runs.settings().mlflow_artifacts / named.mlflow_run_id / "artifacts" / "merged_model" / source.name
    assert logged.read_bytes() == source.read_bytes()
    if logged.stat().st_dev == source.stat().st_dev:
        assert logged.samefile(source)


def test_the_same_model_again_is_one_version_but_looked_at_again(named: PipelineRun, tmp_path: Path) -> None:
    artifacts = made(tmp_path)
    first, again = register(named, artifacts), register(named, artifacts)
    assert (first.version, again.version, again.champion) == (1, 1, True)
    client().delete_registered_model_alias(named.recipe.name, "champion")
    assert register(named, artifacts).champion
    assert champion(named.recipe.name) == 1
    assert len(client().search_model_versions(f"name = '{named.recipe.name}'")) == 1


@pytest.mark.parametrize(("changes", "moves", "why"), [
    ({"nll": 0.4, "solved": 0.6}, True, "not worse than those of version 1"),
    ({"nll": 0.5, "solved": 0.5}, True, "not worse"),
    ({"nll": 0.4, "solved": 0.4}, False, "pass@1 on all tests 40.0 % is worse than 50.0 % of version 1."),
    ({"nll": 0.6, "solved": 0.6}, False, "held-out loss 0.6000 is worse than 0.5000 of version 1."),
    ({"nll": 0.6, "solved": 0.4}, False, "held-out loss 0.6000 is worse than 0.5000 of version 1; pass@1 on all tests 40.0 %"),
    ({"nll": 0.1, "solved": 0.9, "held_out": "other rows"}, False, "cannot be compared with version 1"),
    ({"nll": 0.1, "solved": 0.9, "benchmark": "c" * 64}, False, "cannot be compared with version 1"),
    ({"nll": 0.1, "solved": 0.9, "problems": 10}, False, "cannot be compared with version 1"),
    ({"nll": float("nan"), "solved": 0.9}, False, "is not a number"),
    ({"nll": 0.1, "solved": 0.9, "infrastructure_errors": 1}, False, "some of its answers could not be graded"),
    ({"nll": 0.500001, "solved": 0.9}, False, "held-out loss 0.500001 is worse than 0.500000 of version 1."),
])
def test_the_alias_moves_only_to_what_is_comparable_and_not_worse(
    named: PipelineRun, tmp_path: Path, request: pytest.FixtureRequest, changes: dict[str, Any], moves: bool, why: str,
) -> None:
    name = f"rule-{request.node.callspec.indices['changes']}"
    run = named.model_copy(update={"recipe": Recipe(name=name)})
    register(run, made(tmp_path))
    found = register(run, made(tmp_path, model="b", **changes))
    assert (found.version, found.champion) == (2, moves)
    assert why in found.why
    assert champion(name) == (2 if moves else 1)
    assert client().get_model_version(name, "2").tags["xft.champion"].endswith(found.why)
    said = client().get_model_version(name, "1").tags["xft.champion"]
    assert said == "no: version 2 took its place." if moves else said.startswith("yes: ")


@pytest.mark.slow
def test_of_two_equal_ones_the_later_stays_champion(named: PipelineRun, tmp_path: Path) -> None:
    register(named, made(tmp_path))
    register(named, made(tmp_path, model="b"))
    assert not register(named, made(tmp_path)).champion
    assert champion(named.recipe.name) == 2


@pytest.mark.slow
def test_a_model_measured_anew_becomes_comparable(named: PipelineRun, tmp_path: Path) -> None:
    """Measure the champion on a larger benchmark: it keeps both measurements."""
    register(named, made(tmp_path, problems=10))
    assert not register(named, made(tmp_path, model="b", nll=0.4, problems=80)).champion
    assert register(named, made(tmp_path, problems=80)).version == 1
    assert register(named, made(tmp_path, model="b", nll=0.4, problems=80)).champion
    assert not register(named, made(tmp_path, model="c", nll=0.45, problems=10)).champion


@pytest.mark.slow
def test_a_champion_chosen_by_hand_is_the_one_to_beat(
    named: PipelineRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This holds some time after the choice. A run at the same moment as the run that took the alias is its rival instead."""
    monkeypatch.setattr(champions, "RIVAL_SECONDS", 0.2)
    register(named, made(tmp_path))
    register(named, made(tmp_path, model="b", nll=0.3))
    time.sleep(0.3)
    client().set_registered_model_alias(named.recipe.name, "champion", "1")
    assert register(named, made(tmp_path, model="c", nll=0.4)).why.endswith("not worse than those of version 1.")


def test_the_registered_model_may_have_another_name(named: PipelineRun, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "recipe", "registry": {"name": "another-name"}})
    assert register(named.model_copy(update={"recipe": recipe}), made(tmp_path)).name == "another-name"
    assert champion("another-name") == 1


@pytest.mark.slow
@pytest.mark.parametrize("lock", ["one machine", "two machines"])
def test_runs_that_end_at_once_leave_the_best_as_champion(
    named: PipelineRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str,
) -> None:
    """On two machines the lock does not help: every run reads the same champion before any of them moves the alias."""
    losses = [0.48, 0.3, 0.45, 0.4]
    name = f"at-once-{lock.partition(' ')[0]}"
    run = named.model_copy(update={"recipe": Recipe(name=name)})
    register(run, made(tmp_path))
    if lock == "two machines":
        together, waited = threading.Barrier(len(losses)), threading.local()
        read = champions._champion

        @contextmanager
        def unlocked(_: Path) -> Iterator[None]:
            yield

        def read_together(name: str) -> Any:
            found = read(name)
            if not hasattr(waited, "once"):
                waited.once = True
                together.wait(60)
            return found

        monkeypatch.setattr(registry, "locked", unlocked)
        monkeypatch.setattr(champions, "_champion", read_together)
    given = [made(tmp_path / str(number), model=str(number), nll=nll) for number, nll in enumerate(losses)]
    found: dict[float, Registration] = {}

    def one(nll: float, artifacts: dict[str, ArtifactRef]) -> None:
        found[nll] = register(run, artifacts)

    threads = [threading.Thread(target=one, args=pair) for pair in zip(losses, given, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item.version or 0 for item in found.values()) == [2, 3, 4, 5]
    assert champion(name) == found[0.3].version
    assert found[0.3].champion


def test_an_answer_that_is_lost_does_not_register_twice(
    named: PipelineRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifacts = made(tmp_path)
    api = client()
    create = api.create_model_version

    def lose(*args: Any, **kwargs: Any) -> None:
        create(*args, **kwargs)
        raise ConnectionResetError("on purpose")

    with monkeypatch.context() as broken:
        broken.setattr(api, "create_model_version", lose)
        with pytest.raises(ConnectionResetError):
            register(named, artifacts)
    assert register(named, artifacts).version == 1
    assert len(client().search_model_versions(f"name = '{named.recipe.name}'")) == 1


def generates(directory: Path) -> bool:
    inputs = load_tokenizer(directory)("def add(a, b):", return_tensors="pt")
    tokens = load_model(directory, torch.float32).generate(**inputs, max_new_tokens=4, do_sample=False)
    return bool(tokens.shape[1] == inputs.input_ids.shape[1] + 4)


def objects(s3: Proxy, prefix: str) -> set[str]:
    found = raw_client(s3.target).list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
    return {item["Key"] for item in found}


def collect_garbage() -> None:
    """Remove all garbage that gc finds, regardless of age."""
    bucket = upkeep.bucket_in_force()
    for item in upkeep.garbage_remote(bucket, days=0):
        item.remove()


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["through the server", "too large for it"])
def test_a_server_with_its_files_in_s3(
    s3: Proxy, mlflow_server: tuple[str, Path], tmp_path: Path, card: Path, monkeypatch: pytest.MonkeyPatch,
    weights: str,
) -> None:
    """Weights above the limit are not uploaded again: the version points at the artifact in the object store."""
    import mlflow

    address, _ = mlflow_server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3.address)  # for MLflow's own download from an S3 address
    if weights == "too large for it":
        monkeypatch.setenv("XFT_MLFLOW_COPY_LIMIT_MB", "0")
    name = f"server-{weights.replace(' ', '-')}"
    run = runs.open_run(Recipe(name=name, experiment=name), f"flow-of-{name}", name)
    artifacts = made(tmp_path)
    for item in artifacts.values():
        remote.deliver(item.path, threading.Event())
    whole = log_model(run, artifacts["merge"].path, card)
    assert whole == (weights == "through the server")
    for _ in range(2):
        found = registry.register(run, artifacts, CARD, whole, remote.keep, logger)
        assert (found.version, found.champion) == (1, True)
    source = client().get_model_version(name, "1").source
    assert source.startswith("mlflow-artifacts:/" if whole else f"s3://{BUCKET}/some/prefix/artifacts/merge/")
    in_mlflow = objects(s3, DESTINATION.partition(f"{BUCKET}/")[2])
    assert any(key.endswith("merged_model/model.safetensors") for key in in_mlflow) == whole
    assert any(key.endswith("merged_model/MLmodel") for key in in_mlflow)
    collect_garbage()
    assert objects(s3, DESTINATION.partition(f"{BUCKET}/")[2]) == in_mlflow
    left = objects(s3, "some/prefix/artifacts/")
    assert {key.split("/")[3] for key in left} == (set() if whole else {"merge"})
    directory = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@champion", dst_path=str(tmp_path / "down")))
    assert generates(directory)


def test_measurements_are_plain_json(named: PipelineRun, tmp_path: Path) -> None:
    register(named, made(tmp_path))
    tags = client().get_model_version(named.recipe.name, "1").tags
    text, = (value for name, value in tags.items() if name.startswith("xft.measured."))
    assert json.loads(text) == {"held_out_nll": 0.5, "pass_at_1": 0.5, "benchmark": "benchmark.jsonl", "problems": 80}


@pytest.mark.slow
def test_only_what_takes_the_alias_becomes_a_version(named: PipelineRun, tmp_path: Path) -> None:
    first = register(named, made(tmp_path), register="champion")
    worse = register(named, made(tmp_path, model="b", nll=0.6), register="champion")
    assert (first.version, first.replaced, worse.version) == (1, 0, None)
    assert str(worse).startswith(f"{named.recipe.name}, no version: held-out loss 0.6000 is worse than 0.5000")
    assert len(client().search_model_versions(f"name = '{named.recipe.name}'")) == 1
    better = register(named, made(tmp_path, model="c", nll=0.4), register="champion")
    assert (better.version, better.champion, better.replaced) == (2, True, 1)
    assert register(named, made(tmp_path, model="c", nll=0.4), register="champion").replaced is None
    tags = client().get_model_version(named.recipe.name, "2").tags
    assert (tags["upcycle.num_experts"], tags["upcycle.normalization"], tags["merge.method"]) == ("8", "xft", "learned")


def test_the_alias_waits_for_approval(named: PipelineRun, tmp_path: Path) -> None:
    name, artifacts = named.recipe.name, made(tmp_path)
    proposal = register(named, artifacts, approval="required").proposal
    assert proposal is not None and (proposal.version, proposal.champion) == (1, None)
    assert champion(name) is None
    found = registry.decide(named, proposal, True, "", logger)
    assert (found.champion, found.replaced, champion(name)) == (True, 0, 1)
    assert register(named, artifacts, approval="required").proposal is None  # nobody is asked to approve twice
    again = register(named, made(tmp_path, model="b", nll=0.4), approval="required").proposal
    assert again is not None and again.champion_measured is not None and again.champion_measured.held_out_nll == 0.5
    assert registry.decide(named, again, False, "a fluke", logger).why == "it was rejected: a fluke."
    assert champion(name) == 1
    rejected = register(named, made(tmp_path, model="b", nll=0.4), approval="required")
    assert (rejected.proposal, rejected.why) == (None, "it was rejected: a fluke.")
    worse = register(named, made(tmp_path, model="c", nll=0.6), approval="required")
    assert worse.proposal is None and "is worse than" in worse.why


def test_what_is_approved_late_must_still_be_the_best(named: PipelineRun, tmp_path: Path) -> None:
    proposal = register(named, made(tmp_path), approval="required").proposal
    assert proposal is not None
    register(named, made(tmp_path, model="b", nll=0.4))
    found = registry.decide(named, proposal, True, "", logger)
    assert not found.champion and "is worse than" in found.why
    assert champion(named.recipe.name) == 2
