"""Build the model and the data of the middle study: ``python -m performance.study.build OUT [--tokens 8000000]``.

The model is a Llama of 5 million parameters, pre-trained for one pass over files of the standard library and of permissively
licensed packages. The data are docstring and body pairs from other packages. The seed, the installed versions
(OUT/versions.json) and, for the model, the number of threads determine every file.
"""

import argparse
import json
import random
import time
from importlib.metadata import version
from pathlib import Path

import torch

from performance.study import corpus
from xft_core.demo.data import write_jsonl
from xft_core.demo.pretrain import Example, new_model, pretrain, train_tokenizer

VOCABULARY = 4096
WINDOW = 512  # tokens of a training sequence
SIZES = {
    "hidden_size": 224, "intermediate_size": 608, "num_hidden_layers": 7, "num_attention_heads": 7, "num_key_value_heads": 7}
TOKENIZER_FILES = 3_000
ROWS = {"train": (corpus.TRAINING, 4_000), "reserved": (corpus.RESERVED, 400), "report": (corpus.REPORT, 1_000)}
FEW_ROWS = {"train": 240, "reserved": 150, "report": 400}  # the first of each, for deployments/studies/few_pairs.yaml
# The report rows after these are other_report.jsonl, for deployments/studies/sparse_longer.yaml.


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the files built")
    parser.add_argument("--tokens", type=int, default=8_000_000, help="tokens that the model is pre-trained on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    build_data(options.out, options.seed)
    build_model(options.out, options.tokens, options.seed)


def build_data(out: Path, seed: int) -> None:
    """Write ``train.jsonl``, ``reserved.jsonl``, ``report.jsonl``, their first rows as ``few_*``, the other report rows as
    ``other_report.jsonl``, and ``versions.json``."""
    for name, (packages, count) in ROWS.items():
        rows = corpus.sample(packages, count, seed)
        write_jsonl(out / f"{name}.jsonl", rows)
        write_jsonl(out / f"few_{name}.jsonl", rows[:FEW_ROWS[name]])
        if name == "report":
            write_jsonl(out / "other_report.jsonl", rows[FEW_ROWS[name]:])
        print(f"{name}: {len(rows)} rows of {', '.join(packages)}", flush=True)
    used = sorted({*corpus.PRETRAINING[1:], *corpus.TRAINING, *corpus.RESERVED, *corpus.REPORT})
    versions = {name: version(name) for name in used}
    (out / "versions.json").write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8")


def build_model(out: Path, tokens: int, seed: int) -> None:
    """Write ``model/``: tokenizer and model."""
    started = time.monotonic()
    documents = [text for package in corpus.PRETRAINING for text in corpus.texts(package)]
    random.Random(f"documents {seed}").shuffle(documents)
    tokenizer = train_tokenizer(documents[:TOKENIZER_FILES], VOCABULARY)
    examples: list[Example] = []
    rest: list[int] = []
    for document in documents:
        if len(examples) * WINDOW >= tokens:
            break
        rest += [*tokenizer.encode(document, add_special_tokens=False), tokenizer.eos_token_id]
        while len(rest) >= WINDOW:
            examples.append((rest[:WINDOW], rest[:WINDOW]))
            rest = rest[WINDOW:]
    model = new_model(tokenizer, seed, **SIZES)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(documents)} files, {len(examples) * WINDOW} tokens, {parameters} parameters, "
          f"{time.monotonic() - started:.0f} s", flush=True)
    pretrain(model, examples, seed, mixed=False)
    model.to(torch.bfloat16).save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
