"""``python -m xft_core.exports.smoke SOURCE COPY``: check that plain transformers loads the same model from two directories.

Prints the largest difference of logits and whether greedy tokens are the same, as JSON; exit status 1 if the models differ.
"""

import json
import sys

import torch
from transformers import AutoConfig, AutoTokenizer

from xft_core.models.classes import auto_class

PROMPT, NEW_TOKENS = "def add(a, b):\n", 16


@torch.no_grad()
def main(source: str, copy: str) -> int:
    """Load both models and compare them."""
    found = []
    for directory in (source, copy):
        kind = auto_class(AutoConfig.from_pretrained(directory, trust_remote_code=False))
        model = kind.from_pretrained(directory, use_safetensors=True, trust_remote_code=False).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        given = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
        tokens = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
        found.append((model(**given).logits.float(), tokens.tolist()))
    difference = float((found[0][0] - found[1][0]).abs().max())
    same = found[0][1] == found[1][1]
    print(json.dumps({"largest_difference": difference, "same_tokens": same}))
    return 0 if same and difference == 0 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
