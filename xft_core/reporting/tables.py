"""Markdown tables and lists. Tables for a terminal: xft_core/runtime/terminal.py."""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with its columns aligned: the first to the left, numbers to the right."""
    header, rows = [_cell(text) for text in header], [[_cell(text) for text in row] for row in rows]
    # At least 2: the rule below a column of numbers needs a dash and a colon.
    widths = [max(2, *(len(line[column]) for line in [header, *rows])) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in [header, rule, *rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in aligned)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def bullets(sentences: list[str]) -> str:
    """Sentences as a Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)
