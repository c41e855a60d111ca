"""Download the known benchmarks that are not shipped from their authors' releases, and check each file's sha256.

HumanEval+ and MBPP+ go into evalplus's cache, MultiPL-E and DS-1000 into the directory XFT_BENCHMARKS. ``find_benchmark``
looks in these places.
"""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from xft_core.benchmarks.find import EVALPLUS_FILES
from xft_core.errors import DataError
from xft_core.files.disk import write_whole
from xft_core.files.environment import benchmarks_directory, cache_directory
from xft_core.files.locate import hub_is_offline

SECONDS = 30.0  # without an answer
MOST_BYTES = 2**28  # packed or unpacked; the largest benchmark has 8 MB
EVALPLUS = "https://github.com/evalplus/{}_release/releases/download/{}/{}.jsonl.gz"
MULTIPL_E = (
    "https://raw.githubusercontent.com/deepseek-ai/DeepSeek-Coder/main/Evaluation/HumanEval/data/humaneval-{}.jsonl")
MULTIPL_E_DIGESTS = {
    "cpp": "8717eabdf202137158c84506144b0fb1e73d5ecccbe5363ec79009ca014df629",
    "go": "7f5dfe3ff001049b1221e9d21a8119b5cbc38eb87c97fefc5d57fa7adc1df888",
    "java": "b21b015763452ec4f9f4e0e6425148ec331ace4da1232c8b4d441186185f6265",
    "js": "634e2eee8d6e22de07c121b972207683dd96be76256bf44bdfc1a3386b739287",
    "lua": "d2e91f3603f6aee63db2c2d5754d165397603a8c9bd6130842af7988b27a96fc",
    "php": "bebd86875b1d8e65a8b7e692ed7bdf64612b44aa388825ea4dab40c7047c786b",
    "pl": "949048bff3eaea7ae47cd5759042c088a7c227d53c74fe95a80728fd5aefbf77",
    "rb": "4204395b835019e32d55513325a0fad01c6d382fd1eb97b516f0458d00058302",
    "rs": "e33f562838e973b7e6b8d76dbc1fb84b076d7426629b4cdc624f12678778d2fa",
    "sh": "2f702106e9ce4aa7385de568d9248d6c57c90382d782b162cb9e072fbd01ccf8",
    "ts": "4b1af1050c9f226335d54a8c80553c39454a525cace3e67bdcfcc9092ba02637",
}


@dataclass(frozen=True)
class Source:
    """A benchmark's address and the sha256 (hex) of its unpacked file. ``place``: its path below XFT_BENCHMARKS, without .gz;
    None: it is kept in evalplus's cache."""

    address: str
    sha256: str
    place: str | None = None


SOURCES = {
    "humaneval": Source(
        EVALPLUS.format("humanevalplus", "v0.1.10", "HumanEvalPlus"),
        "42526ec0e7d5f3ee0b06d6ced98f8c8bae3d76519151bfb3d36f79010645bd7f"),
    "mbpp": Source(
        EVALPLUS.format("mbppplus", "v0.2.0", "MbppPlus"), "b54e762755248ca411b523c917fa9f93c07b5ff2966bf60b3917b853926a3dad"),
    "ds1000": Source(
        "https://raw.githubusercontent.com/xlang-ai/DS-1000/main/data/ds1000.jsonl.gz",
        "26a492838b05f9d030b2f08a5715c6bafecafb601c157da912bf417fd8b0d363", "ds1000/ds1000.jsonl"),
} | {
    f"multipl-e/{language}": Source(
        MULTIPL_E.format(language), digest, f"multipl-e/humaneval-{language}.jsonl")
    for language, digest in MULTIPL_E_DIGESTS.items()}


def fetch(name: str, sources: dict[str, Source] | None = None) -> tuple[Path, bool]:
    """Fetch a benchmark. Return its file, and whether a complete one was already there.

    Raises DataError for a benchmark without a known source, for a failed download, and for a file that differs from the
    released one.
    """
    source = (SOURCES if sources is None else sources).get(name)
    if source is None:
        raise DataError(f"There is no known source for a benchmark {name[:100]!r}. Known: {', '.join(SOURCES)}.")
    place = _place(name, source)
    for here in (place, place.with_suffix("")):
        if here.is_file():
            if _digest(_unpacked(here.read_bytes(), str(here))) == source.sha256:
                return here, True
            raise DataError(
                f"{str(here)!r} exists, but is not the released {name} (the sha256 of its unpacked content differs). It is "
                "left unchanged; remove it to fetch the released one.")
    content = _unpacked(_download(name, source.address), source.address)
    if _digest(content) != source.sha256:
        raise DataError(
            f"The file from {source.address} is not the known {name}: the sha256 of its unpacked content is {_digest(content)} "
            f"instead of {source.sha256}. The file was not kept. If its authors released a new one, download it yourself, and "
            "give its path as the benchmark.")
    place.parent.mkdir(parents=True, exist_ok=True)
    write_whole(place, gzip.compress(content, mtime=0))
    return place, False


def _place(name: str, source: Source) -> Path:
    if source.place is None:
        return cache_directory() / "evalplus" / f"{EVALPLUS_FILES[name][1]}.gz"
    directory = benchmarks_directory()
    if directory is None:
        raise DataError(f"{name} is kept in the directory XFT_BENCHMARKS, but that variable is not set. Set it to a directory.")
    return directory / f"{source.place}.gz"


def _download(name: str, address: str) -> bytes:
    by_hand = (f"Download {address} on a machine with a network, and give the file's path as the benchmark "
               f"(evaluate.benchmarks, or --benchmark).")
    if hub_is_offline():
        raise DataError(f"{name} is not fetched because HF_HUB_OFFLINE forbids downloads. Unset it. Or: {by_hand}")
    try:
        with urlopen(address, timeout=SECONDS) as answer:
            content: bytes = answer.read(MOST_BYTES + 1)
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{name} could not be fetched from {address}: {reason}. {by_hand}") from None
    if len(content) > MOST_BYTES:
        raise DataError(f"{name}: {address} returns more than {MOST_BYTES:,} bytes, so it is not that benchmark. {by_hand}")
    return content


def _unpacked(content: bytes, where: str) -> bytes:
    """The content of a gzip file; any other content unchanged."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(content, MOST_BYTES)
    except zlib.error as error:
        raise DataError(f"{where} is not a complete gzip file ({error}). Remove it, and fetch it again.") from None
    if not unpacker.eof:
        raise DataError(f"{where} is not a complete gzip file, or is larger than {MOST_BYTES:,} bytes unpacked. Remove it.")
    return unpacked


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
