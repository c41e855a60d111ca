"""Text for a terminal."""

from collections.abc import Collection, Sequence


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int]) -> str:
    """A table for a terminal; the columns ``right`` are aligned to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines)
