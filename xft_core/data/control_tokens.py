"""A copy of a tokenizer whose control tokens are spelled differently, so that their usual spellings in the data stay text."""

import json
import re
from itertools import count
from typing import TYPE_CHECKING, Any

from xft_core.data.prompt_text import PromptText
from xft_core.data.tokenizer_json import loaded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PRIVATE = re.compile("\ue000([0-9]+)\ue002")


def unused_number(text: str) -> int:
    """Return the smallest number for which no spelling of ``with_other_spellings`` occurs in the text."""
    used = set(_PRIVATE.findall(text))
    return next(number for number in count() if str(number) not in used)


def with_other_spellings(content: dict[str, Any], controls: set[str], number: int) -> tuple["Tokenizer", dict[str, str]]:
    """Return the tokenizer with new spellings of its control tokens that contain ``number``, and a map to the new spellings."""
    replaced = sorted(control for control in controls if not _BYTE.fullmatch(control))
    spellings = {control: f"\ue000{number}\ue002{index}\ue001" for index, control in enumerate(replaced)}
    content = json.loads(json.dumps(content))
    # Byte tokens keep their names, which the model uses for text without a token. No template writes them.
    content["added_tokens"] = [token for token in content["added_tokens"] if not _BYTE.fullmatch(token["content"])]
    for token in content["added_tokens"]:
        token["content"] = spellings.get(token["content"], token["content"])
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {spellings.get(name, name): number for name, number in model["vocab"].items()}
    else:
        model["vocab"] = [[spellings.get(name, name), score] for name, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = spellings.get(model["unk_token"], model["unk_token"])
    return loaded(content), spellings


def respelled(text: PromptText, spellings: dict[str, str]) -> tuple[str, int | None]:
    """Return the text for the tokenizer with other spellings, and the position where its prompt ends."""
    pattern = re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))))
    written, end, asked = "", 0, text.asked
    for start, stop in (*(text.control or ()), (len(text.text), len(text.text))):
        for piece, is_control in ((text.text[end:start], False), (text.text[start:stop], True)):
            if text.asked is not None and end <= text.asked <= end + len(piece):
                head = piece[:text.asked - end]
                asked = len(written) + len(pattern.sub(lambda found: spellings[found[0]], head) if is_control else head)
            written += pattern.sub(lambda found: spellings[found[0]], piece) if is_control else piece
            end += len(piece)
    return written, asked


def text_of_the_data(text: PromptText) -> str:
    """Return the parts of a text in which the spelling of a control token is plain text."""
    if text.control is None:
        return "" if text.has_special_tokens else text.text
    pieces, end = [], 0
    for start, stop in (*text.control, (len(text.text), len(text.text))):
        pieces.append(text.text[end:start])
        end = stop
    return "\n".join(pieces)
