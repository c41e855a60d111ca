import gzip
import hashlib
from pathlib import Path

from xft_core.benchmarks.jsonl import append, read_appended, unpacked_digest


def test_what_was_appended_is_read_but_for_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_appended(path) == []
    append(path, {"text": "ä"}, {"text": "b"})
    append(path, {"text": "c"})
    with path.open("a") as stream:
        stream.write('{"text": "cut sh')
    rows = [{"text": "ä"}, {"text": "b"}, {"text": "c"}]
    assert read_appended(path) == rows
    append(path, {"text": "d"})
    assert read_appended(path) == [*rows, {"text": "d"}]


def test_a_digest_is_that_of_the_content_however_it_is_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(b"{}\n" * 10**5)
    packed.write_bytes(gzip.compress(b"{}\n" * 10**5))
    assert unpacked_digest(plain) == unpacked_digest(packed) == hashlib.sha256(b"{}\n" * 10**5).hexdigest()
