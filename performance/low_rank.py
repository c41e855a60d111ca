"""Compare a training step of low-rank experts with the dense one and that of full experts, in one run.

    python -m performance.low_rank [--shape 135M] [--layers 1] [--tokens 1024] [--rank 4] [--repeats 7] [--threads 1]

Prints two tables: the FFN alone, and decoder layers almost without embeddings (a vocabulary of 256), forward and backward pass.
Ratios are to the dense step of the same run, by the clock and by CPU time. On a busy machine, use the CPU time; with one thread
it is exact. The optimizer is not included: its work grows with the parameters, 1.1 times the dense model's at rank 4.
"""

import argparse
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from performance.random_models import shape
from performance.side_by_side import print_heading, print_table, side_by_side
from xft_core.families import FAMILIES
from xft_core.models.config import decoder_layers
from xft_core.models.upcycled import empty_moe
from xft_core.recipe.sections import UpcycleConfig

COLUMNS = ["what", "precision", "way", "seconds", "CPU seconds", "/ dense", "by CPU time"]


def main() -> None:
    """Measure on the CPU (or the GPU, if there is one) and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135M")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--per-token", type=int, default=6)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], nargs="+", default=["fp32"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = shape(options.shape, num_hidden_layers=options.layers, vocab_size=256)
    full = UpcycleConfig(num_experts=options.experts, num_experts_per_tok=options.per_token)
    low_rank = full.model_copy(update={"expert_rank": options.rank})
    print_heading(
        f"Step of N {options.experts}, K {options.per_token}, rank {options.rank}: {options.shape} shape, {options.layers} "
        f"layers, {options.tokens} tokens, {options.threads} threads, {device.type}")
    rows: list[list[object]] = []
    for precision in options.precision:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        models = {
            "dense": AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype),
            "low rank": random_moe(config, low_rank, dtype), "full experts": random_moe(config, full, dtype)}
        for what, make in (("FFN", _ffn), ("layers", _whole)):
            modules = {name: make(model.to(device).train()) for name, model in models.items()}
            ways = {name: partial(_step, module, config, options.tokens) for name, module in modules.items()}
            taken = side_by_side(ways, options.repeats)
            rows += [
                [what, precision, name, item.seconds, item.cpu_seconds, item.seconds / taken["dense"].seconds,
                 item.cpu_seconds / taken["dense"].cpu_seconds] for name, item in taken.items()]
    print_table(COLUMNS, rows)


def random_moe(config: dict[str, Any], upcycle: UpcycleConfig, dtype: torch.dtype) -> Any:
    """Return an upcycled model with random weights, including B."""
    model = empty_moe(config, upcycle, dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def _ffn(model: Any) -> nn.Module:
    ffn: nn.Module = getattr(decoder_layers(model, FAMILIES["llama"])[0], FAMILIES["llama"].mlp)
    return ffn


def _whole(model: Any) -> nn.Module:
    whole: nn.Module = model
    return whole


def _step(module: nn.Module, config: dict[str, Any], tokens: int) -> None:
    parameter, length = next(module.parameters()), min(512, tokens)
    generator = torch.Generator().manual_seed(1)
    hidden_BSD = torch.randn(tokens // length, length, config["hidden_size"], generator=generator)
    hidden_BSD = hidden_BSD.to(parameter.device, parameter.dtype).requires_grad_()
    if hasattr(module, "lm_head"):
        result = module(inputs_embeds=hidden_BSD, use_cache=False).logits
    else:
        result = module(hidden_BSD)
    result.float().square().mean().backward()
    if parameter.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
