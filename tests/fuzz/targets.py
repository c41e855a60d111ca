"""Every place where the tool reads what others wrote. A target feeds it one hostile input; an XftError is a right answer.

The in-process readers are asked, not the command line: starting Python takes a thousand times as long as reading does.
That the command lines turn XftError into ``error: ...`` and exit status 2 is tested beside them.
"""

import gzip
import io
import json
import os
import random
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz.target import target
from tests.fuzz.values import NAMES, YAML, changed, json_text, spoiled, value
from xft_core.demo import DEMO_DIR
from xft_core.errors import DataError, XftError


def _texts(rng: random.Random, content: dict[str, Any]) -> bytes:
    if rng.random() < 0.3:
        return rng.choice(YAML).encode("utf-8", "surrogatepass")
    if rng.random() < 0.7:
        text = yaml.safe_dump(changed(rng, content)).encode("utf-8", "surrogatepass")
    else:
        text = json_text(rng, content)
    return spoiled(rng, text) if rng.random() < 0.3 else text


def _recipe_fields() -> dict[str, Any]:
    from xft_core.config import Recipe

    return Recipe().model_dump()


@target
def recipe(rng: random.Random, directory: Path) -> None:
    """A recipe file, and what it names."""
    from tasks.inputs import check_inputs
    from xft_core.recipe import load_recipe

    path = directory / "recipe.yaml"
    path.write_bytes(_texts(rng, _recipe_fields()))
    check_inputs(load_recipe(path))


@target
def override(rng: random.Random, directory: Path) -> None:
    """A --set."""
    from tasks.inputs import check_inputs
    from xft_core.config import Recipe
    from xft_core.recipe import flatten, parse

    field = rng.choice([*flatten(Recipe()), *NAMES, "sft", "a.b.c.d", ".", "=", "model.path.x"])
    text = rng.choice([*YAML, *NAMES, json.dumps(value(rng))])
    check_inputs(parse(Recipe, {}, [rng.choice([f"{field}={text}", field + text, text])]))


@target
def grid(rng: random.Random, directory: Path) -> None:
    """A --grid."""
    from xft_core.config import Recipe
    from xft_core.grid import expand
    from xft_core.recipe import flatten

    known = flatten(Recipe())
    chosen = [rng.choice(list(known)) for _ in range(rng.choice([1, 1, 2]))]
    fields = ",".join(chosen)
    if rng.random() < 0.4:  # nearly what a person would write
        now = [known[field] for field in chosen]
        steps = [now[0], 1] if len(chosen) == 1 else [now, [1, 2]]
        text = json.dumps(changed(rng, steps), default=str)
    else:
        text = rng.choice([*YAML, json.dumps([value(rng) for _ in range(rng.randrange(4))]), f"[{rng.choice(NAMES)}]", "[1,2]"])
    expand(Recipe(), [f"{fields}={text}"] * rng.choice([1, 1, 2]))


@target
def stage_config(rng: random.Random, directory: Path) -> None:
    """The configuration of a stage, and the key made of it."""
    from xft_core.recipe import parse, read_yaml
    from xft_core.stage import stage_key
    from xft_core.stages import STAGES

    stage = STAGES[rng.choice(["prepare", "upcycle", "sft", "mix", "merge", "generate", "evaluate", "nll"])]
    content = {name: field.get_default(call_default_factory=True) for name, field in stage.model_fields.items()
               if not field.is_required()}
    content = {name: item.model_dump() if hasattr(item, "model_dump") else item for name, item in content.items()}
    content |= {name: str(directory) for name, field in stage.model_fields.items() if field.is_required()}
    content["output"] = str(directory / "out")
    path = directory / "stage.json"
    path.write_bytes(_texts(rng, content))
    stage_key(parse(stage, read_yaml(path)))


@target
def environment(rng: random.Random, directory: Path) -> None:
    """Settings from the environment."""
    from tasks import settings, storage
    from xft_core.evaluate import cores

    names = ["XFT_HOME", "XFT_COMPUTE_SLOTS", "XFT_MLFLOW_COPY_LIMIT_MB", "XFT_STORE", "XFT_MLFLOW_UI_URL",
             "MLFLOW_TRACKING_URI", "XFT_S3_ENDPOINT_URL", "OMP_NUM_THREADS", "XFT_BENCHMARKS", "XDG_CACHE_HOME"]
    texts = [*NAMES, "http://[", "http://[::1", "http://a:b@c:99999999", "http://", "s3://aa", "s3://a..b/c", "s3://aaa//b",
             "9" * 5000, "-1", "0", "1e9", "٣", "²", "http://h:x", "https://u:p@h/..", "file:///x",
             "s3://u:p@host/x", " 1 ", "1,2"]
    before = dict(os.environ)
    try:
        for name in rng.sample(names, 2):
            text = rng.choice(texts).replace("\0", "")  # the system has none in its environment, nor half characters
            os.environ[name] = text.encode("utf-8", "replace").decode()
        settings.settings()
        storage.store()
        cores()
        from xft_core.locations import find_benchmark

        try:
            find_benchmark(rng.choice(["humaneval", "multipl-e/js", "ds1000"]))
        except DataError:  # it is not there, wherever that is
            pass
    finally:
        os.environ.clear()
        os.environ.update(before)


def artifact(directory: Path, files: dict[str, bytes]) -> Path:
    """A copy of an artifact of mix with these files."""
    return Path(shutil.copytree(_published(tuple(files.items()))[1], directory / "artifact"))


@lru_cache(maxsize=4)
def _published(files: tuple[tuple[str, bytes], ...]) -> tuple[tempfile.TemporaryDirectory[str], Path]:
    from xft_core.artifacts import Workspace, publish

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
    """The manifest of an artifact, as it is found on disk."""
    from xft_core.artifacts import find
    from xft_core.fingerprint import input_digest
    from xft_core.inspect import describe

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
    """A manifest with the sums that it should have, from whoever can write to the object store."""
    from pydantic import ValidationError

    from tasks.remote import parse_manifest
    from tasks.store_admin import _stored
    from xft_core import artifacts

    content = json.loads((artifact(directory, {"coefficients.json": b"{}"}) / "manifest.json").read_bytes())
    try:
        forged = artifacts.Manifest.model_validate(changed(rng, content))
        forged = forged.model_copy(update={"digest": artifacts._digest(forged.files)}).sealed()
        text = forged.model_dump_json().encode()
    except (ValidationError, ValueError):
        return
    found = parse_manifest(text, "s3://bucket/prefix")
    for entry in found.files:
        assert not Path(entry.path).is_absolute() and ".." not in Path(entry.path).parts
        inside = (directory / "store" / entry.path).resolve()
        assert inside.is_relative_to((directory / "store").resolve())
    _stored(found, "mix", "k" * 32)


@target
def snapshot(rng: random.Random, directory: Path) -> None:
    """What the object store says of a checkpoint."""
    from pydantic import ValidationError

    from tasks.checkpoints import Snapshot

    entry = {"path": "checkpoints/checkpoint-1/model.safetensors", "size": 1, "sha256": "0" * 64}
    try:
        found = Snapshot.model_validate_json(json_text(rng, {"key": "k", "files": [entry, entry | {"path": "key"}]}))
    except ValidationError:
        return
    assert all((directory / entry.path).resolve().is_relative_to(directory.resolve()) for entry in found.files)


def _model(directory: Path) -> Path:
    copy = directory / "model"
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(DEMO_DIR / "model", copy))


def _read_model(path: Path) -> None:
    from xft_core.checkpoint import CheckpointReader
    from xft_core.inspect import describe
    from xft_core.planning.shape import read_shape

    for read in (describe, lambda path: read_shape(path / "config.json")):
        try:
            read(path)
        except XftError:
            pass
    with CheckpointReader(path) as reader:
        for name in reader.names():
            reader.shape(name)
            reader.get(name)
            reader.dtype(name)


@target
def model_config(rng: random.Random, directory: Path) -> None:
    """config.json of a model, and the model built of it."""
    from xft_core.models import load_model, transformers_config
    from xft_core.planning.shape import read_shape

    path = _model(directory)
    content = json.loads((path / "config.json").read_bytes())
    (path / "config.json").write_bytes(json_text(rng, content | rng.choice([
        {}, {}, {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, {"num_hidden_layers": 10**9}, {"vocab_size": 10**12},
        {"attn_implementation": "owner/kernel"}, {"quantization_config": {"quant_method": "x"}}, {"dtype": "evil"}])))
    try:
        read_shape(path / "config.json")
    except XftError:
        pass
    import torch

    from xft_core.checkpoint import read_config

    if rng.random() < 0.7:
        transformers_config(read_config(path))
    else:
        load_model(path, torch.float32)


@target
def safetensors_file(rng: random.Random, directory: Path) -> None:
    """A weights file whose header or data is spoiled: lengths, offsets, dtypes, shapes."""
    path = _model(directory) / "model.safetensors"
    if rng.random() < 0.8:
        _spoil_tensors(rng, path)
    else:
        whole = path.read_bytes()
        size = rng.choice([int.from_bytes(whole[:8], "little") + 1, 2**62, 0, 2**64 - 1])
        path.write_bytes(size.to_bytes(8, "little") + whole[8:])
    _read_model(path.parent)


@target
def shard_index(rng: random.Random, directory: Path) -> None:
    """The index of a sharded checkpoint."""
    path = _model(directory)
    (directory / "secret.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    from safetensors import safe_open

    with safe_open(path / "model.safetensors", framework="pt") as handle:
        names = list(handle.keys())
    elsewhere = ["../secret.safetensors", str(directory / "secret.safetensors")]
    shard = rng.choice([*["model.safetensors"] * 6, "gone.safetensors", *elsewhere])
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model.safetensors") | {names[0]: shard}}
    (path / "model.safetensors.index.json").write_bytes(json_text(rng, index))
    _read_model(path)
    assert "secret" not in shard or shard not in (path / "model.safetensors.index.json").read_text(errors="replace")


@lru_cache(maxsize=1)
def _made_once() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """A place with ``moe``, an upcycled model of the smallest size, and ``data``, prepared rows."""
    from tests.factories import dense_model
    from xft_core.config import UpcycleConfig
    from xft_core.data.rows import Row, save_rows
    from xft_core.stage import run_stage
    from xft_core.stages import UpcycleStage

    place = tempfile.TemporaryDirectory()
    root = Path(place.name)
    dense_model(root / "dense")
    run_stage(UpcycleStage(output=root / "moe", model=str(root / "dense"), upcycle=UpcycleConfig(
        num_experts=3, num_experts_per_tok=2)))
    (root / "data").mkdir()
    save_rows(root / "data" / "train.safetensors", [Row([1, 2, 3, 4], 2), Row([5, 6, 7], 1)])
    return place, root


def _spoil_tensors(rng: random.Random, path: Path) -> None:
    """Other names, types, shapes and offsets in a safetensors file, or other bytes."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    if rng.random() < 0.7:
        header = json_text(rng, json.loads(whole[8:8 + length]))
        path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length:])
    else:
        path.write_bytes(spoiled(rng, whole))


@target
def moe_model(rng: random.Random, directory: Path) -> None:
    """An upcycled model: its config.json and its tensors, as SFT, mix and merge read them."""
    import torch

    from xft_core.inspect import describe
    from xft_core.mixing_weights import MixtureReader
    from xft_core.models import load_model

    path = Path(shutil.copytree(_made_once()[1] / "moe", directory / "moe"))
    (path / "manifest.json").unlink()
    if rng.random() < 0.6:
        (path / "config.json").write_bytes(json_text(rng, json.loads((path / "config.json").read_bytes())))
    else:
        _spoil_tensors(rng, path / "model.safetensors")
    try:
        describe(path)
    except XftError:
        pass
    if rng.random() < 0.5:
        load_model(path, torch.float32)
        return
    with MixtureReader(path) as mixture:
        for layer in range(mixture.num_layers):
            for tensor in mixture.expert_tensors(layer):
                list(mixture.mixed(
                    tensor, torch.ones(mixture.num_experts, dtype=torch.float64), tensor.dtype, torch.device("cpu")))


@target
def prepared_rows(rng: random.Random, directory: Path) -> None:
    """Tokenised rows of the prepare stage, down to the batches of a training."""
    from xft_core.data.packing import PackedRows
    from xft_core.data.rows import load_rows

    path = Path(shutil.copytree(_made_once()[1] / "data", directory / "data"))
    if rng.random() < 0.5:
        _spoil_tensors(rng, path / "train.safetensors")
    else:
        _forge_rows(rng, path / "train.safetensors")
    rows = load_rows(path, "train")
    data = PackedRows(rows, max(rows.lengths()), packing=rng.random() < 0.5)
    for index in range(len(data)):
        batch = data.collate([data[index]])
        assert batch["input_ids"].shape == batch["labels"].shape


def _forge_rows(rng: random.Random, path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    name = rng.choice(list(tensors))
    other = rng.choice([
        torch.tensor([rng.choice([-5, -1, 0, 1, 2, 3, 7, 2**31 - 1]) for _ in range(rng.randrange(5))], dtype=torch.int64),
        tensors[name].flip(0), tensors[name][:-1], tensors[name][None], tensors[name].float(), torch.tensor(3)])
    save_file(tensors | {name: other.contiguous()}, path)


@target
def optimizer_state(rng: random.Random, directory: Path) -> None:
    """What a checkpoint holds beside the weights."""
    import torch

    from xft_core.state_files import load_state, save_state

    moments = {"step": torch.tensor(3.0), "moment": torch.ones(2, 2)}
    save_state(directory, "optimizer", {"state": {0: moments}, "param_groups": [{"lr": 0.1, "betas": (0.9, 1)}]})
    path = directory / "optimizer.json"
    if rng.random() < 0.7:
        path.write_bytes(json_text(rng, json.loads(path.read_bytes())))
    else:
        _spoil_tensors(rng, directory / "optimizer.safetensors")
    load_state(directory, "optimizer")


@target
def tokenizer(rng: random.Random, directory: Path) -> None:
    """The files of a tokenizer."""
    from xft_core.data.templates import chat_prompt
    from xft_core.models import load_tokenizer

    path = Path(shutil.copytree(_made_once()[1] / "dense", directory / "model"))
    name = rng.choice([item.name for item in path.iterdir() if "token" in item.name or item.suffix == ".jinja"])
    content = (path / name).read_bytes()
    (path / name).write_bytes(
        json_text(rng, json.loads(content)) if name.endswith(".json") and rng.random() < 0.8 else spoiled(rng, content))
    loaded = load_tokenizer(path)
    loaded("def f(x):\n    return x")
    chat_prompt(loaded, [{"role": "user", "content": "x"}])


ROWS = [
    {"instruction": "Add", "response": "x"}, {"instruction": "Add", "input": "1", "output": "x"},
    {"problem": "Add", "solution": "x"},
    {"messages": [{"role": "user", "content": "Add"}, {"role": "assistant", "content": "x"}]}]


@target
def data_rows(rng: random.Random, directory: Path) -> None:
    """Instruction data in every form, as lines, as a list, and as Parquet; down to the tokens."""
    from xft_core.config import DataConfig
    from xft_core.data.formats import read_conversations
    from xft_core.data.templates import training_texts
    from xft_core.models import load_tokenizer

    row = rng.choice(ROWS)
    kind = rng.choice([".jsonl", ".json", ".parquet"])
    path = directory / f"data{kind}"
    if kind == ".parquet":
        import pyarrow
        from pyarrow import parquet

        buffer = io.BytesIO()
        try:
            parquet.write_table(pyarrow.Table.from_pylist([row, changed(rng, row)]), buffer)
        except (pyarrow.ArrowException, TypeError, ValueError, AttributeError, OverflowError):
            return
        path.write_bytes(spoiled(rng, buffer.getvalue()) if rng.random() < 0.7 else buffer.getvalue())
    elif kind == ".json":
        path.write_bytes(json_text(rng, [row, row, changed(rng, row)]))
    else:
        path.write_bytes(json_text(rng, row) + b"\n" + json.dumps(row).encode() + b"\n")
    if not _TOKENIZER:
        _TOKENIZER["tiny"] = load_tokenizer(_made_once()[1] / "dense")
    tokenizer = _TOKENIZER["tiny"]
    config = DataConfig(path=str(path), template=rng.choice(["magicoder", "chat"]))
    for messages in read_conversations(config, path):
        training_texts(messages, config.template, tokenizer)[0].token_ids(tokenizer)


_TOKENIZER: dict[str, Any] = {}

BENCHMARKS = [
    {"task_id": "T/1", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x\n", "base_input": [[1]],
     "plus_input": [[2]], "atol": 0},
    {"name": "H_1_f", "language": "js", "prompt": "function f(x){\n", "tests": "}\nassert(f(1))", "stop_tokens": ["\n}"]},
    {"prompt": "Q", "reference_code": "x = 1", "code_context": "def test_execution(code): pass",
     "metadata": {"problem_id": 1, "library": "Numpy", "perturbation_type": "Origin"}}]


@target
def benchmark(rng: random.Random, directory: Path) -> None:
    """A benchmark file of every kind: its problems, prompts, and what decontamination makes of them."""
    from xft_core.benchmarks.kinds import kind_of
    from xft_core.data.decontaminate import find_contaminated

    row = rng.choice(BENCHMARKS)
    content = json_text(rng, row) + b"\n" + (json.dumps(row).encode() + b"\n" if rng.random() < 0.5 else b"")
    path = directory / rng.choice(["b.jsonl", "b.jsonl.gz"])
    if path.suffix == ".gz":
        content = gzip.compress(content)
        content = spoiled(rng, content) if rng.random() < 0.5 else content
    path.write_bytes(content)
    kind = kind_of(path)
    problems = kind.load_problems(path)
    for problem in problems:
        json.dumps({"task_id": problem.task_id}, ensure_ascii=False).encode()
        kind.solution(problem, "    return x\n```\n", "completion")
    find_contaminated([["def f(x):\n    return x"]], [path])


@target
def samples(rng: random.Random, directory: Path) -> None:
    """samples.jsonl of a model's answers."""
    from xft_core.benchmarks.kinds import kind_of
    from xft_core.evaluate import read_samples

    path = directory / "bench.jsonl"
    path.write_text(json.dumps(BENCHMARKS[0]) + "\n")
    sample = {"task_id": "T/1", "sample_index": 0, "solution": "x"}
    (directory / "samples.jsonl").write_bytes(json_text(rng, sample) + b"\n")
    read_samples(directory / "samples.jsonl", kind_of(path), path, "0")


@target
def results(rng: random.Random, directory: Path) -> None:
    """results.json of an evaluation, compared with another and shown as a page."""
    from xft_core.reporting.diff import diff

    sample = {"base": "pass", "plus": "fail", "detail": "", "solution": "x"}
    content = {"benchmark": {"file": "b", "sha256": "0", "extended_tests": True, "kind": "EvalPlus"}, "sandbox": "x",
               "limits": {}, "problems": [{"task_id": "T/1", "samples": [sample]}, {"task_id": "T/2", "samples": [sample] * 2}]}
    for name in "ab":
        (directory / f"{name}.json").write_bytes(json_text(rng, content) if name == "a" else json.dumps(content).encode())
    diff(directory / "a.json", directory / "b.json", directory / "page.html")


@target
def coefficients(rng: random.Random, directory: Path) -> None:
    """coefficients.json of mix, and the merge by it."""
    from xft_core.mixing import load_coefficients

    layers = [{"weights": [0.75, 0.25], "movement": 0.0}] * 2
    content = {"method": "learned", "shared_expert": True, "layers": layers}
    (directory / "coefficients.json").write_bytes(json_text(rng, content))
    load_coefficients(directory)


@target
def report_files(rng: random.Random, directory: Path) -> None:
    """comparison.json of a run's report, and what a comparison of variants makes of it."""
    from tests.xft_core.test_compare import write_report
    from xft_core.compare import headline
    from xft_core.config import Recipe
    from xft_core.grid import expand, field_labels, parse_grid
    from xft_core.reporting.variant_markdown import variants_markdown
    from xft_core.reporting.variants import put_together

    grid = ["seed=[0,1]"]
    variants = expand(Recipe(), grid)
    reports = {variant.name: write_report(directory / variant.name, variant, 20, 0.5) for variant in variants}
    path = reports[variants[0].name] / "comparison.json"
    path.write_bytes(json_text(rng, json.loads(path.read_bytes())))
    result = put_together("demo", parse_grid(grid), variants, reports)
    variants_markdown(result, field_labels(grid), variants, {})
    headline(result)


@target
def work_in_progress(rng: random.Random, directory: Path) -> None:
    """Lines, curves, run records and checkpoints that an earlier attempt left. None of them is an error."""
    from tasks.curves import CurveFile
    from tasks.run_records import _parse
    from xft_core.checked_lines import append, read_appended
    from xft_core.seals import newest_whole, seal
    from xft_core.tracking import read_metrics

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


@target
def names(rng: random.Random, directory: Path) -> None:
    """Names of models, data, benchmarks, outputs and objects that lead elsewhere."""
    from tasks.remote_models import _bucket
    from tasks.storage import safe_name
    from xft_core.artifacts import locked
    from xft_core.locations import find_benchmark, find_file, is_there

    name = rng.choice(NAMES) + rng.choice(["", "", ".json", "/x", "\0"])
    for look in (find_file, find_benchmark, is_there):
        try:
            look(name)
        except XftError:
            pass
    try:
        with locked(directory / "inside" / name.replace("/", "_")[:3000]):
            pass
    except XftError:
        pass
    try:
        _bucket("s3://bucket/" + name)
    except XftError:
        pass
    assert (Path("/store") / safe_name(name)).is_relative_to("/store") and ".." not in name.split("/")
