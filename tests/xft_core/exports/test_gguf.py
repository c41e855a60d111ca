"""GGUF files: their numbers, their vocabulary, the tokens that end an answer, and the Modelfile."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from tests.factories import CHAT_TEMPLATE, VOCABULARY, dense_model, tokenizer
from tests.xft_core.mixing.models import prepared, tuned
from xft_core.data.rows import load_rows
from xft_core.data.templates import magicoder_prompt
from xft_core.errors import CheckpointError
from xft_core.exports.gguf.modelfile import begins_once, chat_template, magicoder_template
from xft_core.exports.gguf.vocabulary import vocabulary_of
from xft_core.files.locate import find_model
from xft_core.models.loading import load_model
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.configs import ExportStage
from xft_core.stages.run import run_stage
from xft_core.stages.upcycle import upcycle
from xft_core.training.held_out import held_out_loss

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
CHATML_WITHOUT_SYSTEM = CHATML[CHATML.index("{% for"):]


def exported(model: Path, output: Path, **fields: Any) -> dict[str, Any]:
    return run_stage(ExportStage(output=output, model=str(model), form="gguf", **fields)).manifest.metrics


def fields_of(directory: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(next(directory.glob("*.gguf")))
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])  # qwen3 with heads of 8, where transformers expects 128
def test_the_file_read_again_is_the_model(family: str, tmp_path: Path) -> None:
    dense = dense_model(tmp_path / "dense", family)
    metrics = exported(dense, tmp_path / "export", quantization="f32")
    assert metrics["largest_difference"] < 1e-4
    input_ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        logits = [load_model(path, torch.float32)(input_ids=input_ids).logits for path in (dense, tmp_path / "export")]
    assert float((logits[0] - logits[1]).abs().max()) < 1e-5


def test_a_quantised_file_has_its_own_loss_and_it_is_that_of_its_weights(tmp_path: Path) -> None:
    dense_model(tmp_path / "dense", hidden_size=64, intermediate_size=96)
    data = prepared(tmp_path)
    found = {kind: exported(tmp_path / "dense", tmp_path / kind, quantization=kind, data=data) for kind in ("q8_0", "q4_0")}
    assert found["q8_0"]["held_out_nll_source"] == found["q4_0"]["held_out_nll_source"]
    assert 0 < found["q8_0"]["largest_difference"] < found["q4_0"]["largest_difference"]
    assert found["q8_0"]["same_tokens"] > found["q4_0"]["same_tokens"] > 0
    assert found["q4_0"]["size_mb"] < found["q8_0"]["size_mb"]
    # Computed by hand: the file's weights, dequantized by the gguf package, put into the model.
    for kind, metrics in found.items():
        model = load_model(tmp_path / "dense", torch.float32)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        read = {item.name: item for item in gguf.GGUFReader(tmp_path / kind / f"model-{kind}.gguf").tensors}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                stored = read[str(names.get_name(name, try_suffixes=(".weight",)))]
                weight = torch.from_numpy(np.array(gguf.dequantize(stored.data, stored.tensor_type), dtype=np.float32))
                if ".q_proj" in name or ".k_proj" in name:
                    heads = 4 if ".q_proj" in name else 2
                    weight = weight.reshape(heads, -1, 2, weight.shape[-1]).transpose(1, 2)
                parameter.copy_(weight.reshape(parameter.shape))
        assert held_out_loss(model, load_rows(data, "held_out")).nll == pytest.approx(metrics["held_out_nll"], abs=2e-5)
        assert metrics["held_out_nll"] != metrics["held_out_nll_source"]


def test_the_file_says_what_ends_an_answer(tmp_path: Path) -> None:
    """The data's end token comes first, whatever the model's files contain."""
    dense = dense_model(tmp_path / "dense")
    (dense / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))
    data = prepared(tmp_path)
    assert json.loads((data / "response_end.json").read_text())["token_ids"] == [1]
    exported(dense, tmp_path / "export", quantization="f16", data=data)
    fields = fields_of(tmp_path / "export")
    assert fields["tokenizer.ggml.eos_token_id"] == 1 and fields["tokenizer.ggml.eot_token_id"] == 2
    assert fields["tokenizer.ggml.pre"] == "gpt-2" and not fields["tokenizer.ggml.add_bos_token"]
    known = AutoTokenizer.from_pretrained(dense)
    assert fields["tokenizer.ggml.tokens"][:len(known)] == known.convert_ids_to_tokens(range(len(known)))
    text = (tmp_path / "export" / "Modelfile").read_text()
    assert text.startswith("FROM ./model-f16.gguf\n")
    assert 'PARAMETER stop "</s>"' in text and 'PARAMETER stop "<pad>"' in text
    assert "@@ Instruction\n{{ .Prompt }}\n\n@@ Response\n{{ .Response }}" in text


ODD_END = '<|"end" of\\turn|>'


def test_an_end_that_only_the_chat_template_has_is_in_every_file(tmp_path: Path) -> None:
    """A padding token that was added beyond the model's rows is left out: llama.cpp requires as many tokens as rows."""
    dense = dense_model(tmp_path / "dense")
    (dense / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    odd = tokenizer(ODD_END)
    odd.chat_template = CHAT_TEMPLATE.replace("</s>", ODD_END)
    odd.add_tokens([f"<|filler {number}|>" for number in range(VOCABULARY - len(odd))])
    odd.add_special_tokens({"pad_token": "<|beyond|>"})
    odd.save_pretrained(dense)
    data, end = prepared(tmp_path, template="chat"), odd.convert_tokens_to_ids(ODD_END)
    exported(dense, tmp_path / "export", quantization="f32", data=data, template="chat")
    fields = fields_of(tmp_path / "export")
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (end, 1)
    assert len(fields["tokenizer.ggml.tokens"]) == VOCABULARY and "tokenizer.ggml.padding_token_id" not in fields
    assert json.loads((tmp_path / "export" / "generation_config.json").read_text())["eos_token_id"] == [1, end]
    # As Ollama reads a value: quotes are removed, everything else is kept.
    assert f'PARAMETER stop """{ODD_END}"""\n' in (tmp_path / "export" / "Modelfile").read_text()


def test_an_end_that_is_a_word_is_written_as_text(tmp_path: Path) -> None:
    dense = dense_model(tmp_path / "dense")
    word = tokenizer().convert_tokens_to_ids("Ġ")
    (dense / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, word]}))
    exported(dense, tmp_path / "export")
    assert 'PARAMETER stop " "\n' in (tmp_path / "export" / "Modelfile").read_text()


def test_an_end_beyond_the_tokenizer_is_no_stop(tmp_path: Path) -> None:
    """It has no text, and an empty stop would end every answer at once."""
    dense = dense_model(tmp_path / "dense")
    (dense / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, VOCABULARY - 1]}))
    assert len(tokenizer()) < VOCABULARY
    exported(dense, tmp_path / "export")
    assert "tokenizer.ggml.eot_token_id" not in fields_of(tmp_path / "export")
    assert re.findall("PARAMETER stop .*", (tmp_path / "export" / "Modelfile").read_text()) == ['PARAMETER stop "</s>"']


def test_a_config_without_a_context_length_has_its_familys(tmp_path: Path) -> None:
    path = dense_model(tmp_path / "dense") / "config.json"
    content = json.loads(path.read_text())
    del content["max_position_embeddings"]
    path.write_text(json.dumps(content))
    exported(tmp_path / "dense", tmp_path / "export")
    assert fields_of(tmp_path / "export")["llama.context_length"] == 2048
    assert "PARAMETER num_ctx 2048\n" in (tmp_path / "export" / "Modelfile").read_text()


def test_frequencies_of_positions_are_left_out(tmp_path: Path) -> None:
    """llama.cpp refuses a file with tensors that it does not use."""
    path = dense_model(tmp_path / "dense") / "model.safetensors"
    save_file(load_file(path) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, path, {"format": "pt"})
    exported(tmp_path / "dense", tmp_path / "export")
    names = [item.name for item in gguf.GGUFReader(tmp_path / "export" / "model-q8_0.gguf").tensors]
    assert len(names) == 21 and not any("rot" in name for name in names)


def test_the_demo_model_can_be_written(tmp_path: Path) -> None:
    metrics = exported(find_model("demo:model"), tmp_path / "export")
    assert metrics["largest_difference"] < 1
    assert fields_of(tmp_path / "export")["tokenizer.ggml.pre"] == "smollm"  # every digit is a separate token


def test_a_granite_mixture_is_written_with_its_experts(tmp_path: Path) -> None:
    moe = tuned(tmp_path, normalization="granite")
    exported(moe, tmp_path / "export", quantization="f32")
    fields = fields_of(tmp_path / "export")
    assert fields["general.architecture"] == "granitemoe"
    assert (fields["granitemoe.expert_count"], fields["granitemoe.expert_used_count"]) == (3, 2)
    assert fields["granitemoe.attention.scale"] == pytest.approx(8**-0.5)
    read = {item.name: item.data for item in gguf.GGUFReader(tmp_path / "export" / "model-f32.gguf").tensors}
    stored = load_file(moe / "model.safetensors")
    experts = stored["model.layers.1.mlp.experts.gate_up_proj"].numpy()
    assert np.array_equal(read["blk.1.ffn_gate_exps.weight"], experts[:, :48])
    assert np.array_equal(read["blk.1.ffn_up_exps.weight"], experts[:, 48:])
    down = stored["model.layers.1.mlp.shared_expert.down_proj.weight"].numpy()
    assert np.array_equal(read["blk.1.ffn_down_shexp.weight"], down)


@pytest.mark.parametrize(("family", "reason"), [("gemma2", "cannot be written to GGUF"), ("mistral", "sliding window of 16")])
def test_a_family_that_is_not_written_is_refused(family: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=reason):
        exported(dense_model(tmp_path / "dense", family), tmp_path / "export")


def test_a_granite_mixture_with_scaled_positions_is_refused(tmp_path: Path) -> None:
    dense_model(tmp_path / "dense", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    (tmp_path / "moe").mkdir()
    upcycle(tmp_path / "dense", tmp_path / "moe", UpcycleConfig(normalization="granite"), seed=0)
    with pytest.raises(CheckpointError, match=r"positions are scaled \(linear\)"):
        exported(tmp_path / "moe", tmp_path / "export")


def test_another_mixture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="supports only granite"):
        exported(tuned(tmp_path), tmp_path / "export")


def test_a_tokenizer_that_llama_cpp_would_cut_otherwise_is_refused() -> None:
    odd = tokenizer()
    odd.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("[a-z]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    with pytest.raises(CheckpointError, match="would give the model other tokens"):
        vocabulary_of(odd, 320)


def rendered(template: str, messages: list[dict[str, str]]) -> str:
    """Render the constructs that our templates use, as Ollama would."""
    system = next((message["content"] for message in messages if message["role"] == "system"), "")
    text = re.sub(
        r"\{\{ if \.System \}\}(.*?)(?:\{\{ else \}\}([^{]*))?\{\{ end \}\}(?=\{\{ range)",
        lambda found: found[1] if system else found[2] or "", template, count=1, flags=re.DOTALL)
    start, body, end = re.fullmatch(r"(.*?)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", text, re.DOTALL).groups()  # type: ignore
    user, assistant = re.fullmatch(
        r'\{\{ if eq \.Role "user" \}\}(.*)\{\{ else if eq \.Role "assistant" \}\}(.*)\{\{ end \}\}', body, re.DOTALL).groups()  # type: ignore
    turns = {"user": user, "assistant": assistant}
    return start.replace("{{ .System }}", system) + "".join(
        turns[message["role"]].replace("{{ .Content }}", message["content"])
        for message in messages if message["role"] in turns) + end


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHATML])
def test_ollama_asks_as_the_chat_template_does(template: str) -> None:
    asked = tokenizer()
    asked.chat_template = template
    ours = chat_template(asked, None)
    conversation = [{"role": "system", "content": "Sys"}, {"role": "user", "content": "Q1"},
                    {"role": "assistant", "content": "A1"}, {"role": "user", "content": "Q2"}]
    for messages in (conversation, conversation[1:], conversation[:2], conversation[1:2]):
        assert rendered(ours, messages) == asked.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_a_begin_token_that_starts_every_turn_is_in_the_template(tmp_path: Path) -> None:
    """The file adds the begin token once, so it cannot be the one of a turn."""
    dense, chat = dense_model(tmp_path / "dense"), tokenizer("<|im_start|>")
    chat.bos_token, chat.chat_template = "<|im_start|>", {"default": CHATML_WITHOUT_SYSTEM, "tool_use": "{{ tools }}"}
    chat.save_pretrained(dense)
    exported(dense, tmp_path / "export", template="chat")
    fields, text = fields_of(tmp_path / "export"), (tmp_path / "export" / "Modelfile").read_text()
    assert not fields["tokenizer.ggml.add_bos_token"]
    assert fields["tokenizer.chat_template"] == CHATML_WITHOUT_SYSTEM and "tokenizer.chat_templates" not in fields
    ours, messages = text.split('"""')[1], [{"role": "user", "content": "Q"}]
    assert rendered(ours, messages) == chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    dense, plain = dense_model(tmp_path / "dense"), tokenizer()
    plain.chat_template = None
    (dense / "chat_template.jinja").unlink()
    plain.save_pretrained(dense)
    with pytest.raises(CheckpointError, match="has no chat template, but template is chat"):
        exported(dense, tmp_path / "export", template="chat")


def test_a_chat_template_that_fails_is_refused_with_its_reason() -> None:
    odd = tokenizer()
    odd.chat_template = "{{ raise_exception('Only one turn.') }}"
    with pytest.raises(CheckpointError, match="cannot be converted to an Ollama template: Only one turn"):
        begins_once(odd, "<s>")


def test_a_chat_template_that_is_no_sum_of_parts_is_refused() -> None:
    odd = tokenizer()
    odd.chat_template = "{% for m in messages %}{{ messages | length }}{{ m.content }}{% endfor %}"
    with pytest.raises(CheckpointError, match="does not compose conversations"):
        chat_template(odd, None)


def test_the_papers_prompt_as_ollama_template() -> None:
    assert magicoder_template().replace("{{ .Prompt }}", "Add.").replace("{{ .Response }}", "") == magicoder_prompt("Add.")
