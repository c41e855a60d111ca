"""Run an export in a separate process, as a user who trusts it would: ``python run_exported.py INPUT_IDS OUTPUT DIRECTORY...``.

Loads every directory through AutoModelForCausalLM with remote code, and writes logits and greedy tokens by directory number.
Checks the properties that vLLM's and SGLang's Transformers back ends require before they replace ``experts``.
"""

import inspect
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

input_ids = load_file(sys.argv[1])["input_ids"]
found = {}
for number, directory in enumerate(sys.argv[3:]):
    config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
    with torch.device("meta"):
        base = AutoModel.from_config(config, trust_remote_code=True)
    blocks = [module for module in base.modules() if hasattr(module, "experts")]
    assert len(blocks) == config.num_hidden_layers
    for block in blocks:
        assert list(inspect.signature(block.experts.forward).parameters) == ["hidden_states", "top_k_index", "top_k_weights"]
        shapes = {name: tuple(item.shape) for name, item in block.experts.state_dict().items()}
        assert all(len(shape) == 3 and shape[0] == config.num_experts for shape in shapes.values()), shapes
        assert not dict(block.experts.named_buffers())
        # A router whose only tensor is ``weight`` would be taken for softmax over top-k, and replaced too.
        assert set(block.router.state_dict()) != {"weight"}
    assert base._supports_attention_backend
    model, report = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    with torch.no_grad():
        found[f"{number}.logits"] = model(input_ids=input_ids).logits
        found[f"{number}.tokens"] = model.generate(
            input_ids[:1, :6], attention_mask=torch.ones(1, 6), max_new_tokens=12, do_sample=False)
save_file(found, sys.argv[2])
