from hypothesis import given
from hypothesis import strategies as st

from xft_core.benchmarks.benchmark import Verdict
from xft_core.benchmarks.printable import MAX_CHARACTERS, printable


def test_what_does_not_print_is_escaped() -> None:
    assert printable("a\ud800\0\x1b[2J\u202e\u2028é\n\t\r") == r"a\ud800\x00\x1b[2J\u202e\u2028é" + "\n\t" + r"\r"
    assert printable("ab" * 10**6).startswith("ababab") and len(printable("ab" * 10**6)) == MAX_CHARACTERS


@given(st.text(st.characters()))
def test_any_text_of_a_verdict_can_be_written(text: str) -> None:
    detail = Verdict("fail", "fail", text).detail
    detail.encode()
    assert all(character.isprintable() or character in "\n\t" for character in detail)
    assert Verdict("fail", "fail", detail).detail == detail
