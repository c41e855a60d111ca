"""Does a training step of the MoE reach the dense step's rate? Compares forward, balance loss and backward.

    python -m performance.moe_step [--shape 135M] [--layers 2] [--tokens 2048] [--repeats 5] [--threads N]

The rate is floating-point operations per second: 6 for each active parameter and token (K experts' FFNs, and once the rest) and
12 S D for attention in each layer. Also measures the same MoE with a plain loop over experts (torch.where, index_select,
index_add), and with transformers' grouped matrix product. The optimizer is not included: it works on all N experts.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.moe import grouped_mm_experts_forward

from performance.random_models import shape
from performance.side_by_side import Taken, print_heading, print_table, side_by_side
from xft_core.models.upcycled import empty_moe, moe_blocks
from xft_core.moe.balance import unevenness, usage
from xft_core.recipe.sections import UpcycleConfig
from xft_core.training.held_out import take_routings
from xft_core.training.response_loss import response_loss

UPCYCLE = UpcycleConfig(num_experts=8, num_experts_per_tok=6)
SEQUENCE = 512
COLUMNS = ["precision", "way", "seconds", "CPU seconds", "rate / dense rate", "by CPU time"]


def main() -> None:
    """Measure on the CPU in fp32 and bf16, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135M")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="torch threads; one makes CPU seconds exact (others spin while they wait)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = shape(options.shape, num_hidden_layers=options.layers, vocab_size=options.vocabulary)
    print_heading(
        f"MoE step, N 8, K 6, {options.shape} shape, {options.layers} layers, {options.tokens} tokens in sequences of "
        f"{SEQUENCE}, {torch.get_num_threads()} threads")
    rows = [
        row for dtype in (torch.float32, torch.bfloat16)
        for row in measure(config, options.tokens, dtype, torch.device("cpu"), options.repeats)]
    print_table(COLUMNS, rows)


def measure(config: dict[str, Any], tokens: int, dtype: torch.dtype, device: torch.device, repeats: int) -> list[list[object]]:
    """Return the table's rows for one precision."""
    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype).to(device).train()
    moe = random_moe(config, dtype, device)
    batch = random_batch(config, tokens, device)
    ways: dict[str, Callable[[], object]] = {
        "dense": partial(step, dense, batch), "MoE": partial(step, moe, batch),
        "MoE, plain loop": partial(_step_with, plain_loop, moe, batch),
        "MoE, grouped_mm": partial(_step_with, grouped_mm_experts_forward, moe, batch)}
    taken = side_by_side(ways, repeats)
    work = {name: operations(config, tokens, 1 if name == "dense" else UPCYCLE.num_experts_per_tok) for name in ways}

    def rate(name: str, measure_of: Callable[[Taken], float]) -> float:
        return work[name] / measure_of(taken[name]) / (work["dense"] / measure_of(taken["dense"]))

    return [
        [str(dtype).removeprefix("torch."), name, item.seconds, item.cpu_seconds, rate(name, lambda it: it.seconds),
         rate(name, lambda it: it.cpu_seconds)]
        for name, item in taken.items()]


def operations(config: dict[str, Any], tokens: int, num_ffns: int) -> float:
    """Return the floating-point operations of forward and backward with ``num_ffns`` active FFNs for each token."""
    hidden, heads, groups = (config[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    attention = hidden * hidden * (2 + 2 * groups / heads)
    ffn = 3 * hidden * config["intermediate_size"]
    scores = 12 * min(SEQUENCE, tokens) * hidden
    layers = config["num_hidden_layers"] * (6 * (attention + num_ffns * ffn) + scores)
    return float(tokens * (layers + 6 * config["vocab_size"] * hidden))


def random_moe(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """Return an upcycled model with random weights, in training mode."""
    with device:
        moe = empty_moe(config, UPCYCLE, dtype)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1)
    return moe.to(device).train()


def random_batch(config: dict[str, Any], tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return full sequences of random tokens, all of them response."""
    length = min(SEQUENCE, tokens)
    ids_BS = torch.randint(0, config["vocab_size"], (tokens // length, length), generator=torch.Generator().manual_seed(0))
    batch = {
        "input_ids": ids_BS, "position_ids": torch.arange(length).expand(ids_BS.shape), "labels": ids_BS,
        "token_mask": torch.ones_like(ids_BS, dtype=torch.bool)}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def step(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Run forward, sft's loss, and backward."""
    model.zero_grad()
    for block in moe_blocks(model):
        block.keep_routing = True
    loss = response_loss(model, batch) / batch["labels"].numel()
    routings = take_routings(model)
    if routings:
        loss = loss + 0.01 * unevenness(usage(routings, batch["token_mask"].reshape(-1), UPCYCLE.shared_expert), "sum")
    loss.backward()
    if loss.is_cuda:
        torch.cuda.synchronize()


def plain_loop(self: Any, x_TD: torch.Tensor, expert_index_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
    """The naive implementation: for each expert, select its tokens, apply its FFN, and add the results in place."""
    y_TD = torch.zeros_like(x_TD)
    for expert in range(self.num_experts):
        token, place = torch.where(expert_index_TK == expert)
        gate, up = F.linear(x_TD.index_select(0, token), self.gate_up_proj[expert]).chunk(2, dim=-1)
        h = F.linear(self.act_fn(gate) * up, self.down_proj[expert]) * weight_TK[token, place, None]
        y_TD.index_add_(0, token, h.to(y_TD.dtype))
    return y_TD


def _step_with(way: Callable[..., torch.Tensor], model: Any, batch: dict[str, torch.Tensor]) -> None:
    for block in moe_blocks(model):
        block.experts.forward = partial(way, block.experts)  # type: ignore[method-assign]
    try:
        step(model, batch)
    finally:
        for block in moe_blocks(model):
            del block.experts.forward


if __name__ == "__main__":
    main()
