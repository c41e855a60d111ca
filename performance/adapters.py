"""Compare a training step of a dense model with LoRA adapters and one with all weights, in one run.

    python -m performance.adapters [--shape 135M] [--layers 1] [--tokens 256] [--rank 16] [--repeats 5] [--threads 1]

Measures the forward and backward pass and AdamW's step of decoder layers with a vocabulary of 256, by the clock and by CPU
time. On a busy machine, use the CPU time; with one thread it is exact. Also prints the trained parameters and the optimizer
state of each.
"""

import argparse
from functools import partial

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from performance.random_models import shape
from performance.side_by_side import print_heading, print_table, side_by_side
from xft_core.recipe.sections import SftConfig
from xft_core.training.adapters import add_adapters

COLUMNS = ["way", "trained parameters", "optimizer MB", "seconds", "CPU seconds", "by CPU time / all weights"]


def main() -> None:
    """Measure on the CPU, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135M")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = shape(options.shape, num_hidden_layers=options.layers, vocab_size=256)
    print_heading(f"LoRA of rank {options.rank}: {options.shape} shape, {options.layers} layers, {options.tokens} tokens, "
                  f"{options.threads} threads")
    ways, sizes = {}, {}
    for name, sft in (("all weights", SftConfig()), ("lora", SftConfig(adapter="lora", adapter_rank=options.rank))):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).train()
        add_adapters(model, sft, seed=0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        sizes[name] = sum(parameter.numel() for parameter in trained)
        ways[name] = partial(_step, model, torch.optim.AdamW(trained, lr=1e-5), torch.arange(options.tokens)[None] % 256)
    taken = side_by_side(ways, options.repeats)
    print_table(COLUMNS, [
        [name, sizes[name], 8 * sizes[name] / 1e6, item.seconds, item.cpu_seconds,
         item.cpu_seconds / taken["all weights"].cpu_seconds] for name, item in taken.items()])


def _step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, input_ids: torch.Tensor) -> None:
    model(input_ids=input_ids, labels=input_ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main()
