"""Classes of tokens: Python's tokenizer classifies code, the text around it is prose, and any model output is accepted."""

from hypothesis import given
from hypothesis import strategies as st

from tests.factories import tokenizer
from xft_core.data.token_classes import CLASSES, character_classes, token_classes

CODE = 'def f(x):  # adds\n    return x + 10 if x else "é—no"\n'


def words(text: str) -> dict[str, str | None]:
    """Return the class of each word by its first character."""
    classes = character_classes(text)
    return {word: classes[text.index(word)] for word in text.split()}


def test_code_is_read_by_pythons_tokenizer() -> None:
    assert words(CODE) == {
        "def": "keyword", "f(x):": "identifier", "#": "comment", "adds": "comment", "return": "keyword", "x": "identifier",
        "+": "number or operator", "10": "number or operator", "if": "keyword", "else": "keyword", '"é—no"': "string"}


def test_prose_is_what_is_outside_of_fences_or_does_not_parse() -> None:
    assert set(words("Here is how it works.").values()) == {"prose"} and words("Yes") == {"Yes": "prose"}
    fenced = words(f"Take this:\n```python\n{CODE}```\nIt returns.\n```js\nlet y = 1\n```\n")
    assert fenced["Take"] == fenced["returns."] == "prose"
    assert fenced["def"] == "keyword" and fenced["10"] == "number or operator"
    assert fenced["let"] is None and fenced["```js"] is None
    unfinished = words("Look:\n```\nfor item in items:\n    total = 'a")
    assert unfinished["for"] == "keyword" and unfinished["item"] == "identifier"


def test_each_token_has_the_class_of_what_it_adds() -> None:
    known = tokenizer()
    tokens = known(CODE, add_special_tokens=False).input_ids
    classes = token_classes(known, [*tokens, known.eos_token_id])
    assert len(classes) == len(tokens) + 1 and classes[-1] is None
    assert set(classes[:-1]) - {None} == set(CLASSES) - {"prose"}
    by_character, place = character_classes(CODE), 0
    for token, found in zip(tokens, classes, strict=False):
        piece = known.decode([token])
        if CODE.startswith(piece, place) and piece.strip():
            assert found == by_character[place + len(piece) - len(piece.lstrip())]
        place = min(place + len(piece), len(CODE)) if CODE.startswith(piece, place) else place


@given(st.text(max_size=80) | st.text("`\n\r\f\\'\"{}f# python", max_size=60))
def test_whatever_is_written_every_character_has_a_class_or_none(text: str) -> None:
    classes = character_classes(text)
    assert len(classes) == len(text) and set(classes) <= {*CLASSES, None}
