"""The tokenizer of an upcycled model and of its exports gives the dense model's tokens, whatever the model type."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.factories import CHAT_TEMPLATE, tokenizer
from xft_core.models.tokenizer import keep_tokens, load_tokenizer

TEXTS = ["<|user|>\nHi there</s>\n  def f(x):\n    return x", "a</s> b", " x", "it's 2026 é"]


def in_words(directory: Path, model_type: str, named: str) -> Path:
    """Write a tokenizer in the form of a converted SentencePiece model, which files of Llama, Mistral and Phi-3 have."""
    model = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    model.train_from_iterator(["▁def▁f(x):", "▁▁▁▁return▁x", "▁Hi▁there", "▁it's▁2026"] * 4, trainer)
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    model.add_special_tokens([AddedToken("<|user|>", special=True)])
    PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    return described(directory, {"model_type": model_type}, named)


def described(directory: Path, config: dict[str, object], named: str) -> Path:
    """Add a config.json, and name the tokenizer's class as files on the Hub do."""
    (directory / "config.json").write_text(json.dumps(config))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": named}))
    return directory


def tokens(directory: Path) -> list[list[int]]:
    """Return the tokens as a user of the directory gets them."""
    found = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    return [found(text).input_ids for text in TEXTS]


@pytest.mark.parametrize(("model_type", "exported", "named"), [
    ("llama", "granitemoeshared", "LlamaTokenizerFast"), ("mistral", "granitemoeshared", "LlamaTokenizerFast"),
    ("mistral", "xft_moe_exported", "LlamaTokenizerFast"), ("phi3", "xft_moe_exported", "LlamaTokenizer"),
    ("qwen2", "qwen2_moe", "PreTrainedTokenizerFast")])
def test_tokens_do_not_depend_on_the_model_type(model_type: str, exported: str, named: str, tmp_path: Path) -> None:
    dense = in_words(tmp_path / "dense", model_type, named)
    upcycled, export = (shutil.copytree(dense, tmp_path / name) for name in ("upcycled", "export"))
    (upcycled / "config.json").write_text(json.dumps({"model_type": "xft_moe", "dense_config": {"model_type": model_type}}))
    (export / "config.json").write_text(json.dumps({"model_type": exported}))
    assert [load_tokenizer(upcycled)(text).input_ids for text in TEXTS] == tokens(dense)
    keep_tokens(upcycled, export)
    assert tokens(export) == tokens(dense)
    messages = [{"role": "user", "content": "Q"}]
    assert load_tokenizer(export).apply_chat_template(messages) == load_tokenizer(dense).apply_chat_template(messages)


def test_a_tokenizer_that_gives_the_same_tokens_is_left_as_it_is(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path / "dense")
    described(tmp_path / "dense", {"model_type": "llama"}, "PreTrainedTokenizerFast")
    export = shutil.copytree(tmp_path / "dense", tmp_path / "export")
    (export / "config.json").write_text(json.dumps({"model_type": "granitemoeshared"}))
    before = {path.name: path.read_bytes() for path in export.iterdir()}
    keep_tokens(tmp_path / "dense", export)
    assert {path.name: path.read_bytes() for path in export.iterdir()} == before
