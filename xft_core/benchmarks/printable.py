"""Text of any origin, fit for a file in UTF-8, a log and a terminal."""

MAX_CHARACTERS = 2000


def printable(text: str) -> str:
    """At most MAX_CHARACTERS of a text, the middle left out. Whatever does not print (halves of characters, NUL, escape
    sequences, marks that turn the direction of writing) is written as its escape; newlines and tabs stay."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS // 2]}…{text[1 - MAX_CHARACTERS // 2:]}"
    return "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text)
