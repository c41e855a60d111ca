import gzip
import hashlib
from pathlib import Path

from xft_core.files.jsonl import unpacked_digest


def test_a_digest_is_that_of_the_content_however_it_is_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(b"{}\n" * 10**5)
    packed.write_bytes(gzip.compress(b"{}\n" * 10**5))
    assert unpacked_digest(plain) == unpacked_digest(packed) == hashlib.sha256(b"{}\n" * 10**5).hexdigest()
