"""Make text of any origin safe for a UTF-8 file, a log and a terminal."""

MAX_CHARACTERS = 2000


def printable(text: str) -> str:
    """At most MAX_CHARACTERS of a text, without its middle. Unprintable characters (lone surrogates, NUL, escape
    sequences, marks that reverse the writing direction) become escapes; newlines and tabs stay."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS // 2]}…{text[1 - MAX_CHARACTERS // 2:]}"
    return "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text)
