"""The transformers auto class that builds a model from a configuration."""

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from xft_core.families import PICTURE_FAMILIES


def auto_class(config: PreTrainedConfig) -> Any:
    """The class for causal language models or, for a family that reads pictures, the one for image and text to text."""
    return AutoModelForImageTextToText if config.model_type in PICTURE_FAMILIES else AutoModelForCausalLM


def special_picture_tokens(config: PreTrainedConfig) -> set[int]:
    """Tokens that stand for parts of a picture or enclose one: without the picture, such a model rejects them."""
    found = (value for name, value in config.to_dict().items()
             if name.endswith(("token_id", "token_index")) and name.startswith(("image", "video", "vision", "boi", "eoi")))
    return {value for value in found if isinstance(value, int)}
