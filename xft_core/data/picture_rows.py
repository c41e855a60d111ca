"""Convert rows with pictures to tokens and other tensors, through the model's own processor.

A row has ``image`` (one) or ``images`` (a list), and the fields of any form of formats.py with one question and one answer. A
picture is a data URL (data:image/png;base64,...), an object with the bytes (as in the Hub's Parquet files), or the path of a
file in the directory data.pictures. A row without pictures is a text row.
"""

import base64
import binascii
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.data.formats import check_asks, conversation
from xft_core.data.templates import magicoder_prompt
from xft_core.errors import CheckpointError, DataError, first_line

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import ProcessorMixin

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_PIXELS = 2**26  # of one picture; anything larger is treated as an attack on memory
FIELDS = ("image", "images")


@dataclass(frozen=True)
class PictureRow:
    """One row: its question, its answer, and the bytes of its picture files. ``place``: its location, for error messages."""

    question: str
    answer: str
    pictures: tuple[bytes, ...]
    place: str = ""

    @property
    def digests(self) -> tuple[str, ...]:
        """Digest of each picture."""
        return tuple(hashlib.sha256(picture).hexdigest() for picture in self.pictures)


@dataclass(frozen=True)
class Asked:
    """A prompt for a model that reads pictures: its tokens, and the processor's other tensors (see pictures.py)."""

    input_ids: list[int]
    tensors: "dict[str, torch.Tensor]"


def picture_row(row: Any, directory: Path | None) -> PictureRow:
    """Return a row of a data file. ``directory``: location of its picture files, if any. Raises DataError without the row's
    location."""
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object with fields, but this is a {type(row).__name__}.")
    messages = conversation({name: value for name, value in row.items() if name not in FIELDS}, None)
    if [message["role"] for message in messages] != ["user", "assistant"] or messages.beside:
        raise DataError("a row for a model that reads pictures must have one question and one answer, and nothing else (no "
                        f"system message, no tools); this row has {len(messages)} messages.")
    found = row.get("images") if row.get("images") is not None else row.get("image")
    values = [] if found is None else found if isinstance(found, list) else [found]
    if not values and messages[1]["content"].strip():  # a picture may be the question
        check_asks(messages)
    return PictureRow(
        messages[0]["content"], messages[1]["content"], tuple(picture_bytes(value, directory) for value in values))


def picture_bytes(value: Any, directory: Path | None) -> bytes:
    """Return the contents of one picture file. Raises DataError for a value that is not a picture."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        value = value["path"]
    if not isinstance(value, str):
        raise DataError(f"a picture must be text or an object with bytes, but it is a {type(value).__name__}.")
    if value.startswith("data:"):
        head, _, content = value.partition(",")
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise DataError(f"a picture's data URL begins with {value[:40]!r}. It must begin with data:image/KIND;base64,.")
        try:
            return base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise DataError(f"a picture's data URL is not valid base64 ({error}): {value[:40]!r}.") from None
    if directory is None:
        raise DataError(f"a picture is the file {value!r}, but data.pictures is empty. Set it to the pictures' directory.")
    path = (directory / value).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise DataError(f"the picture {value!r} is outside data.pictures ({str(directory)!r}). Move it into that directory.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the picture {str(path)!r} cannot be read: {error.strerror}.") from None


def opened(content: bytes) -> "Image.Image":
    """Open a picture in RGB. Raises DataError for an unknown format or a picture that is too large."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"a picture has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}. Scale it down.")
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"a picture cannot be read as any of {', '.join(FORMATS)}: {first_line(error)}") from None


def load_processor(directory: Path) -> "ProcessorMixin":
    """Load the processor of a model that reads pictures. Raises CheckpointError if it has no working processor."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # as for tokenizers
        raise CheckpointError(f"{str(directory)!r} has no processor that can be loaded: {first_line(error)}") from None
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise CheckpointError(f"{str(directory)!r} has no processor for pictures and text (preprocessor_config.json).")
    return processor


class PictureAsker:
    """Turns questions about pictures into prompts, and prompts and answers into rows, with one processor."""

    def __init__(self, processor: "ProcessorMixin", template: str) -> None:
        """``template``: magicoder, chat (the processor's own) or completion (the question alone).

        Raises DataError if ``template`` is chat and the processor has no chat template."""
        self.processor, self.tokenizer, self.template = processor, processor.tokenizer, template  # type: ignore[attr-defined]
        if template == "chat" and not (processor.chat_template or self.tokenizer.chat_template):
            raise DataError("the processor has no chat template; use the template (or prompt style) magicoder")
        # Texts that a row must not contain: the processor would take them for a control token or a picture.
        self._control = {token for token in (*self.tokenizer.all_special_tokens, self._placeholder) if token}

    @property
    def _placeholder(self) -> str:
        """The text that marks a picture's position for the processor."""
        processor: Any = self.processor
        token = getattr(processor, "boi_token", None) or processor.image_token  # a begin token stands for a picture
        image = str(getattr(token, "content", token))
        start, end = "<|vision_start|>", "<|vision_end|>"  # in vocabularies that enclose pictures
        return f"{start}{image}{end}" if start in self.tokenizer.get_vocab() else image

    def ask(self, question: str, pictures: tuple[bytes, ...]) -> Asked:
        """Return the prompt. Raises DataError for text that spells a control token, and for a picture that cannot be used."""
        import torch

        self._check(question)
        if self.template == "chat":
            text = self._rendered([self._user(question, len(pictures))], add_generation_prompt=True)
        else:
            written = question if self.template == "completion" else magicoder_prompt(question)
            text = self._placeholder * len(pictures) + written
        images = [opened(picture) for picture in pictures]
        try:
            made = self.processor(
                text=text, **({"images": images} if images else {}), return_tensors="pt",
                add_special_tokens=self.template != "chat")  # a chat template writes them itself
        except Exception as error:  # each processor checks in its own way
            raise DataError(f"the model's processor rejects a row: {first_line(error)}") from None
        ids = made.pop("input_ids")[0].tolist()
        made.pop("attention_mask", None)
        if ids and ids[-1] == self.tokenizer.eos_token_id and self.template != "chat":
            ids.pop()
        return Asked(ids, {name: tensor for name, tensor in made.items() if isinstance(tensor, torch.Tensor)})

    def answered(self, question: str, answer: str, num_pictures: int) -> list[int]:
        """Return the tokens of an answer after its prompt, with its end token."""
        self._check(answer)
        text, end = answer, [self.tokenizer.eos_token_id]
        if self.template == "chat":
            asked = [self._user(question, num_pictures)]
            given = self._rendered(asked, add_generation_prompt=True)
            whole = self._rendered([*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}],
                                   add_generation_prompt=False)
            if not whole.startswith(given):
                raise DataError("the chat template writes the prompt differently once the answer follows")
            text = whole.removeprefix(given).rstrip()
            end = [] if any(text.endswith(token) for token in self._control) else end
        if end == [None]:
            raise DataError("the tokenizer has no end-of-sequence token, so a response could never end")
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, *end]

    def _user(self, question: str, num_pictures: int) -> dict[str, Any]:
        return {"role": "user", "content": [*[{"type": "image"}] * num_pictures, {"type": "text", "text": question}]}

    def _rendered(self, messages: list[dict[str, Any]], **options: Any) -> str:
        try:
            return str(self.processor.apply_chat_template(messages, tokenize=False, **options))
        except Exception as error:  # templates are programs and can raise anything
            raise DataError(f"the processor's chat template rejects the conversation: {first_line(error)}") from None

    def _check(self, text: str) -> None:
        found = next((token for token in self._control if token in text), None)
        if found:
            raise DataError(f"the text contains {found!r}, which has a special meaning for the model's processor. Remove it.")
