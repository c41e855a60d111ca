"""Model directories: configurations, tensors, indices, training state, tokenizers."""

import json
import random
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from tests.fuzz.target import target
from tests.fuzz.values import json_text, spoiled
from xft_core.demo import DEMO_DIR
from xft_core.errors import XftError


def _model(directory: Path) -> Path:
    copy = directory / "model"
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(DEMO_DIR / "model", copy))


def _read_model(path: Path) -> None:
    from xft_core.models.safetensors_io import CheckpointReader
    from xft_core.planning.shape import read_shape
    from xft_core.reporting.inspect import describe

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
    """Read config.json of a model, and build the model from it."""
    from xft_core.models.config import transformers_config
    from xft_core.models.loading import load_model
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

    from xft_core.models.safetensors_io import read_config

    if rng.random() < 0.7:
        transformers_config(read_config(path))
    else:
        load_model(path, torch.float32)


@target
def safetensors_file(rng: random.Random, directory: Path) -> None:
    """Read a weights file with a damaged header or damaged data: lengths, offsets, dtypes, shapes."""
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
    """Read the index of a sharded checkpoint."""
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
def made_once() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """Create a directory with ``moe``, an upcycled model of the smallest size, and ``data``, prepared rows."""
    from tests.factories import dense_model
    from xft_core.data.rows import Row, save_rows
    from xft_core.recipe.sections import UpcycleConfig
    from xft_core.stages.configs import UpcycleStage
    from xft_core.stages.run import run_stage

    place = tempfile.TemporaryDirectory()
    root = Path(place.name)
    dense_model(root / "dense")
    run_stage(UpcycleStage(output=root / "moe", model=str(root / "dense"), upcycle=UpcycleConfig(
        num_experts=3, num_experts_per_tok=2)))
    (root / "data").mkdir()
    save_rows(root / "data" / "train.safetensors", [Row([1, 2, 3, 4], 2), Row([5, 6, 7], 1)])
    return place, root


def _spoil_tensors(rng: random.Random, path: Path) -> None:
    """Change names, types, shapes and offsets in a safetensors file, or its bytes."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    if rng.random() < 0.7:
        header = json_text(rng, json.loads(whole[8:8 + length]))
        path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length:])
    else:
        path.write_bytes(spoiled(rng, whole))


@target
def moe_model(rng: random.Random, directory: Path) -> None:
    """Read an upcycled model: its config.json and its tensors, as SFT, mix and merge read them."""
    import torch

    from xft_core.mixing.mixture import MixtureReader
    from xft_core.models.loading import load_model
    from xft_core.reporting.inspect import describe

    path = Path(shutil.copytree(made_once()[1] / "moe", directory / "moe"))
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
    """Read tokenized rows of the prepare stage, down to the batches of a training."""
    from xft_core.data.packing import PackedRows
    from xft_core.data.rows import load_rows

    path = Path(shutil.copytree(made_once()[1] / "data", directory / "data"))
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
    """Read the files of a checkpoint other than the weights."""
    import torch

    from xft_core.training.optimizer_state import load_state, save_state

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
    """Read the files of a tokenizer."""
    from xft_core.data.templates import chat_prompt
    from xft_core.models.loading import load_tokenizer

    path = Path(shutil.copytree(made_once()[1] / "dense", directory / "model"))
    name = rng.choice([item.name for item in path.iterdir() if "token" in item.name or item.suffix == ".jinja"])
    content = (path / name).read_bytes()
    (path / name).write_bytes(
        json_text(rng, json.loads(content)) if name.endswith(".json") and rng.random() < 0.8 else spoiled(rng, content))
    loaded = load_tokenizer(path)
    loaded("def f(x):\n    return x")
    chat_prompt(loaded, [{"role": "user", "content": "x"}])
