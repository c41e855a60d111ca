"""Pairs of docstring and body: only complete functions with a meaningful docstring, and no package in two parts."""

import ast
import textwrap
from itertools import combinations
from pathlib import Path

import pytest

from performance.study import corpus

SOURCE = '''
class Shape:
    @property
    def area(self) -> float:
        """The area of the shape in square metres.

        A second paragraph that nobody asks by.
        """
        width, height = self.width, self.height
        return width * height if self.filled else 0.0

    def abstract(self):
        """What every subclass has to say for itself."""
        raise NotImplementedError("a subclass says how this is done, nobody else can")

    def short(self):
        """A body that is too short to learn from."""
        return 1

def undocumented(x):
    return [value for value in range(x) if value % 2 == 0 and value % 3 == 0]
'''


def test_a_pair_is_signature_first_paragraph_and_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "texts", lambda _: iter([SOURCE]))
    [row] = corpus.pairs("any")
    assert row == {
        "instruction": "Write the body of this Python function.\n```python\ndef area(self) -> float:\n"
                       '    """The area of the shape in square metres."""\n```',
        "response": "```python\nwidth, height = self.width, self.height\n"
                    "return width * height if self.filled else 0.0\n```"}


def test_no_package_is_in_two_parts() -> None:
    parts = [corpus.PRETRAINING, corpus.TRAINING, corpus.RESERVED, corpus.REPORT]
    assert not any(set(one) & set(other) for one, other in combinations(parts, 2))


def test_pairs_of_a_real_package_are_functions_again() -> None:
    rows = corpus.sample(("click",), 20, 0)
    assert len(rows) == 20 and rows == corpus.sample(("click",), 20, 0) != corpus.sample(("click",), 20, 1)
    for row in rows:
        head = row["instruction"].split("```python\n")[1].removesuffix("\n```")
        body = row["response"].removeprefix("```python\n").removesuffix("\n```")
        ast.parse(head + "\n" + textwrap.indent(body, "    "))
