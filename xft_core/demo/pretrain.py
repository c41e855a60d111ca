"""Tokenizer and base model of the demo: a byte-level BPE and a small Llama, both trained from scratch."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
VOCAB_SIZE = 1280
BATCH = 32  # files a step
POOL = 16 * BATCH  # files sorted by length together, so that a batch needs little padding
PEAK_LR = 3e-3
MAX_POSITIONS = 1024
SIZES = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2}


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """A byte-level BPE that round-trips any text.

    Newlines are always separate tokens: a prompt then tokenizes the same whether or not it is cut after its final
    newline, so prefilled prompts look to the model like its training data. Digits are separate tokens too, which lets a
    small model copy constants from text to code.
    """
    tokenizer = Tokenizer(models.BPE())
    alone = pre_tokenizers.Split(Regex("[\n0-9]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIALS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        **SPECIALS,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int, **sizes: int) -> LlamaForCausalLM:
    """An untrained Llama of about 2.3 million parameters, or of other ``sizes`` (fields of LlamaConfig); the RoPE base differs
    from the default on purpose."""
    torch.manual_seed(seed)
    ids = {name + "_id": tokenizer.convert_tokens_to_ids(token) for name, token in SPECIALS.items()}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **(SIZES | sizes),
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    return model


Example = tuple[list[int], list[int]]  # token ids and labels


def encode(tokenizer: PreTrainedTokenizerFast, files: list[list[tuple[str, str]]]) -> list[Example]:
    """One example for each file, ended by eos.

    Files are not packed together: constants of unrelated functions in the window delay learning to copy. Names and
    docstrings are mostly random; the first function's name and docstring carry loss in only one of four files, so that
    bodies weigh more.
    """
    examples = []
    for number, functions in enumerate(files):
        ids: list[int] = []
        labels: list[int] = []
        for at, (prompt, body) in enumerate(functions):
            head = tokenizer.encode(("\n\n" if at else "") + prompt, add_special_tokens=False)
            tail = tokenizer.encode(body, add_special_tokens=False)
            ids += head + tail
            labels += (head if number % 4 == 0 or at else [-100] * len(head)) + tail
        examples.append(([*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]))
    return examples


def batches(examples: list[Example], seed: int) -> list[list[Example]]:
    """All examples once in random order, BATCH of similar length at a time."""
    rng = random.Random(seed)
    order = rng.sample(examples, len(examples))
    result = []
    for at in range(0, len(order), POOL):
        pool = sorted(order[at : at + POOL], key=lambda example: len(example[0]))
        result += rng.sample(parts := [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)], len(parts))
    return result


def collate(batch: list[Example], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded tensors; causal attention keeps the padding from being seen, so no mask is needed.

    Widths are multiples of 32: the CPU kernels are compiled for each new shape.
    """
    width = -(-max(len(ids) for ids, _ in batch) // 32) * 32
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch])
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in batch])
    return {"input_ids": ids, "labels": labels}


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up over 3 % of the steps, then a cosine down to 2 % of the peak."""
    warmup = max(1, steps * 3 // 100)
    if step < warmup:
        return PEAK_LR * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return PEAK_LR * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, which here needs about half the steps of AdamW; AdamW for embeddings and norms."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=PEAK_LR, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.0)]


def pretrain(model: LlamaForCausalLM, examples: list[Example], seed: int, mixed: bool = True) -> None:
    """Train for one pass over the examples in random order, with bf16 autocast over fp32 weights, or with fp32 alone: a
    processor without bf16 instructions multiplies bf16 27 times slower."""
    schedule, optims, start = batches(examples, seed), optimizers(model), time.time()
    model.train()
    for step, batch in enumerate(schedule):
        for group in (group for optimizer in optims for group in optimizer.param_groups):
            group["lr"] = learning_rate(step, len(schedule))
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = model(**collate(batch, model.config.pad_token_id), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optims:
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 0 or step == len(schedule) - 1:
            print(f"step {step}/{len(schedule)} loss {loss.item():.3f} {time.time() - start:.0f} s", flush=True)
    model.eval()
