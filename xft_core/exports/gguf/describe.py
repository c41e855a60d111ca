"""The contents of a GGUF file and its Modelfile besides the weights: vocabulary, end tokens, the text around a question.

``check_directory`` checks before a run whether a model can be written to such a file: the run's models differ in weights alone.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft_core.errors import CheckpointError
from xft_core.exports.gguf.modelfile import begins_once, chat_template, magicoder_template
from xft_core.exports.gguf.vocabulary import Vocabulary, vocabulary_of
from xft_core.exports.gguf.write import Special, check_architecture
from xft_core.models.config import transformers_config
from xft_core.models.loading import load_tokenizer
from xft_core.models.safetensors_io import read_config

MOST_ENDS = 3  # number of end token fields in a GGUF file


@dataclass(frozen=True)
class Description:
    """A model's description. ``template``: Ollama's; ``chat_template``: the tokenizer's own, None if the model does not use it;
    ``stops``: the end tokens of an answer, as text; ``context``: context length in tokens."""

    vocabulary: Vocabulary
    special: Special
    template: str
    chat_template: str | None
    stops: list[str]
    context: int


def check_directory(source: Path, template: str) -> None:
    """Raise CheckpointError if the model in ``source``, tuned with ``template``, cannot be written to a GGUF file."""
    check_architecture(source)
    describe(source, template)


def describe(source: Path, template: str, taught: Sequence[int] = (), texts: Iterable[str] = ()) -> Description:
    """Return the description of a model directory.

    ``template``: the template that the model was tuned with; ``taught``: tokens that end responses in its data; ``texts``:
    texts that the file's tokenizer must split in the same way. Raises CheckpointError for a model that cannot be described.
    """
    tokenizer = load_tokenizer(source)
    config = read_config(source)
    config = config.get("dense_config", config)
    text_config, sizes = config.get("text_config", config), transformers_config(config).get_text_config()
    size = int(sizes.vocab_size)
    generation = _read(source / "generation_config.json")
    found = [*taught]  # they come first
    for item in (generation.get("eos_token_id"), text_config.get("eos_token_id"), tokenizer.eos_token_id):
        found += item if isinstance(item, list) else [] if item is None else [item]
    # Without a token of that number, a stop would be empty, and Ollama would end every answer before its first word.
    ends = [token for token in dict.fromkeys(found) if token < size and tokenizer.decode([token])]
    if not 1 <= len(ends) <= MOST_ENDS:
        raise CheckpointError(
            f"{len(ends)} tokens of the model end an answer, but a GGUF file can name only one to {MOST_ENDS}. Choose them in "
            "generation_config.json (eos_token_id).")
    vocabulary = vocabulary_of(tokenizer, size, texts)
    bos, adds_bos = tokenizer.bos_token, _adds_bos(tokenizer)
    if template == "chat":
        if tokenizer.chat_template is None:
            raise CheckpointError(
                f"The tokenizer of {str(source)!r} has no chat template, but template is chat. If the model was tuned with the "
                "paper's prompt, set template: magicoder; otherwise put its chat_template.jinja into the model's directory.")
        adds_bos = bos is not None and begins_once(tokenizer, bos)
        text = chat_template(tokenizer, bos if adds_bos else None)
    else:
        text = magicoder_template()
    padding = tokenizer.pad_token_id
    special = Special(tokenizer.bos_token_id, None if padding is None or padding >= size else padding, ends, adds_bos)
    return Description(
        vocabulary, special, text, tokenizer.get_chat_template() if template == "chat" else None,
        [tokenizer.decode([token]) for token in ends], int(sizes.max_position_embeddings))


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes()) if path.is_file() else {}
