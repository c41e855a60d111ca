"""inspect: artifacts, dense and upcycled models, and everything else."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from xft_core.errors import ArtifactError, CheckpointError
from xft_core.reporting.inspect import describe
from xft_core.store.artifacts import publish
from xft_core.store.workspace import Workspace

DENSE = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 16, "tie_word_embeddings": True}
WIDTHS = {"F32": 4, "BF16": 2}


def write_shard(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """Write a safetensors file of zeros by hand."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = WIDTHS[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))


def make_model(directory: Path, config: dict[str, Any] = DENSE) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    tensors = {"model.embed_tokens.weight": ("BF16", [16, 8]), "model.norm.weight": ("F32", [8])}
    write_shard(directory / "model.safetensors", tensors)
    return directory


def test_dense_model(tmp_path: Path) -> None:
    text = describe(make_model(tmp_path / "model"))
    lines = [line.split(maxsplit=1) for line in text.splitlines()[1:]]
    assert ["family", "llama"] in lines
    assert ["parameters", "136 in 2 tensors"] in lines
    assert ["dtype", "BF16 (128), F32 (8)"] in lines
    assert ["layers", "2"] in lines
    assert "tied embeddings  yes" in text and "tokenizer        tokenizer.json" in text


def test_sharded_model_whose_config_does_not_say_whether_it_is_tied(tmp_path: Path) -> None:
    silent = {name: value for name, value in DENSE.items() if name != "tie_word_embeddings"}
    model = make_model(tmp_path / "model", silent)
    (model / "model.safetensors").unlink()
    write_shard(model / "one.safetensors", {"model.embed_tokens.weight": ("F32", [16, 8])})
    write_shard(model / "two.safetensors", {"lm_head.weight": ("F32", [16, 8])})
    (model / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {"model.embed_tokens.weight": "one.safetensors", "lm_head.weight": "two.safetensors"}}))
    text = describe(model)
    assert "256 in 2 tensors" in text and "tied embeddings  no" in text
    (model / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"two\.safetensors' is missing"):
        describe(model)


def test_a_tied_config_beside_a_head_is_said(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    write_shard(model / "model.safetensors", {
        "model.embed_tokens.weight": ("F32", [16, 8]), "lm_head.weight": ("F32", [16, 8])})
    assert "yes in config.json, but a head is stored separately: no, if it differs" in describe(model)


@pytest.mark.parametrize(("upcycle", "expected"), [
    ({"shared_expert": True}, "4 per layer, 3 active per token, one of them shared (always on)"),
    ({"shared_expert": False}, "4 per layer, 3 active per token, none shared"),
])
def test_upcycled_model(tmp_path: Path, upcycle: dict[str, Any], expected: str) -> None:
    config = {"model_type": "xft_moe", "dense_config": DENSE, "upcycle": {
        "num_experts": 4, "num_experts_per_tok": 3, "normalization": "xft", "store_experts": "once"} | upcycle}
    text = describe(make_model(tmp_path / "model", config))
    assert expected in text and "llama" in text and "stored once" in text


def test_model_without_weights(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / "tokenizer.json").unlink()
    text = describe(model)
    assert "none in safetensors form" in text and text.endswith("tokenizer        none")


def test_artifact_and_the_model_in_it(tmp_path: Path) -> None:
    output = tmp_path / "merge"
    workspace = Workspace(output)
    workspace.prepare()
    make_model(workspace.output)
    publish(workspace, output, stage="merge", stage_version=1, key="a" * 64, parents={"model": "b" * 64}, config={},
            metrics={"held_out_nll": 0.512345678, "parameters": 1234567}, provenance={"run": "seven"}, seconds=2.5)
    text = describe(output)
    for expected in ("merge (version 1)", "a" * 64, "b" * 64, "0.512346", "1,234,567", "seven", "intact   yes",
                     "model.safetensors", "family           llama"):
        assert expected in text
    (output / "tokenizer.json").write_text("{ }")
    assert "NO: " in describe(output) and "tokenizer.json' has 3 bytes instead of 2" in describe(output)


@pytest.mark.parametrize("content", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00not json........", b"\xff" * 30])
def test_a_file_that_is_not_safetensors(tmp_path: Path, content: bytes) -> None:
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        describe(model)


def test_truncated_weights(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    shard = model / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        describe(model)


def test_broken_config(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (model / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        describe(model)


def test_what_is_neither(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"neither a published artifact .* nor a model directory"):
        describe(tmp_path)
    with pytest.raises(ArtifactError, match="There is no directory"):
        describe(tmp_path / "nowhere")


def test_what_it_is_comes_first(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "merged")
    workspace.prepare()
    make_model(workspace.output)
    publish(workspace, tmp_path / "merged", stage="merge", stage_version=1, key="k", parents={}, config={}, metrics={},
            provenance={}, seconds=1.0)
    titles = [line for line in describe(tmp_path / "merged").splitlines() if line and not line.startswith(" ")]
    assert titles[:2] == ["model", "artifact"]
