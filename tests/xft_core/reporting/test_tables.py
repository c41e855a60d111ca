"""Markdown tables."""

import re

import pytest

from xft_core.reporting.tables import table

RULE = re.compile(r"\| -+ \|( -+: \|)*")


@pytest.mark.parametrize("header", [["n", "x", "yy"], ["name", "x"], ["", ""], ["n"]])
def test_every_column_has_a_rule_that_markdown_reads(header: list[str]) -> None:
    lines = table(header, [["a"] * len(header), ["b"] * len(header)]).splitlines()
    assert RULE.fullmatch(lines[1]), lines[1]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"


def test_a_cell_cannot_end_its_column_or_its_line() -> None:
    lines = table(["name", "value"], [["a|b", "one\ntwo"]]).splitlines()
    assert len(lines) == 3 and lines[2] == "| a\\|b | one two |"
