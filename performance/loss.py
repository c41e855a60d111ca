"""Compare the blockwise loss in the head (xft_core/training/response_loss.py) with the loss of all logits, in one run.

    python -m performance.loss          # a Markdown table; about a minute of one CPU core
    python -m performance.loss 0 2      # only these of CASES

Measures a training step (forward, backward) of one decoder layer and its head, so that the loss dominates. Time: CPU seconds of
one thread (other work on the machine does not count), the best of REPEATS steps of each, in turns, in one process. Memory:
growth of anonymous memory compared with a process that only has the model.
"""

import sys
import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from performance.memory import peak_memory
from xft_core.data.packing import IGNORED
from xft_core.training.response_loss import response_loss, response_nll

REPEATS = 3
TOKENS = (4, 256)
# vocabulary, hidden size, precision, share of response tokens
CASES = [
    (32_256, 512, "fp32", 0.6), (32_256, 512, "fp32", 1.0), (151_936, 256, "fp32", 0.6), (151_936, 256, "fp32", 1.0),
    (32_256, 256, "bf16", 0.6), (32_256, 256, "mixed", 0.6)]


def main() -> None:
    """Print the table, or run as one of the processes whose memory is measured."""
    torch.set_num_threads(1)
    if "--measure" in sys.argv:
        way, number = sys.argv[2], int(sys.argv[3])
        model, inputs, autocast = _prepared(*CASES[number])
        if way != "none":
            _step(way, model, inputs, autocast)
        return
    print("| vocabulary | hidden size | precision | responses | step: all logits | blocks | memory: all logits | blocks |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|", flush=True)
    for number in map(int, sys.argv[1:] or range(len(CASES))):
        vocabulary, hidden, precision, share = CASES[number]
        model, inputs, autocast = _prepared(vocabulary, hidden, precision, share)
        best = {"all": float("inf"), "blocks": float("inf")}
        for _ in range(REPEATS):
            for way in best:
                started = time.process_time()
                _step(way, model, inputs, autocast)
                best[way] = min(best[way], time.process_time() - started)
        del model
        command = [sys.executable, "-m", "performance.loss", "--measure"]
        empty, everything, blocks = (peak_memory([*command, way, str(number)]) for way in ("none", "all", "blocks"))
        print(f"| {vocabulary:,} | {hidden} | {precision} | {share:.0%} | {best['all']:.2f} s | {best['blocks']:.2f} s | "
              f"{(everything - empty) / 1e6:.0f} MB | {(blocks - empty) / 1e6:.0f} MB |", flush=True)


def _prepared(vocabulary: int, hidden: int, precision: str, share: float) -> tuple[Any, dict[str, torch.Tensor], bool]:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2", vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=1,
        num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    ids_BS = torch.randint(0, vocabulary, TOKENS)
    labels_BS = torch.where(torch.rand(TOKENS) < share, ids_BS, IGNORED)
    inputs = {"input_ids": ids_BS, "position_ids": torch.arange(TOKENS[1]).expand(TOKENS), "labels": labels_BS}
    return model, inputs, precision == "mixed"


def _step(way: str, model: Any, inputs: dict[str, torch.Tensor], autocast: bool) -> None:
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        if way == "all":
            given = {name: inputs[name] for name in ("input_ids", "position_ids")}
            loss = response_nll(model(**given, use_cache=False).logits, inputs["labels"])
        else:
            loss = response_loss(model, inputs)
    (loss / 1000).backward()


if __name__ == "__main__":
    main()
