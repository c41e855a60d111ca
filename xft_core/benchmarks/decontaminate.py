"""Find training rows that contain a benchmark problem: its text or its solution, in full or in a long run of words.

Two texts are compared by their words (letters, digits and underscore, in lower case), so indentation, line breaks,
quotes and comment signs play no part. A row is contaminated if it contains

    substring   a problem's full docstring or comment (its wording, without examples) or its full canonical solution. It has
                at least MIN_WORDS words and MIN_CHARACTERS characters: shorter ones (``return a + b``) are common code.
                For solutions, every character except white space counts, not only the words.
    n_gram      NGRAM_WORDS consecutive words of a problem's prompt or solution. Runs that several problems of
                the benchmarks share (imports, ``for i in range(len(``, stock phrases) belong to no problem and do not count.
                One problem in several files (HumanEval+, its mini version, MultiPL-E in twelve languages) is one problem.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from xft_core.benchmarks.registry import kind_of
from xft_core.recipe.labels import path_labels

# GPT-3's length (Brown et al. 2020, appendix C). Shorter runs flag idioms of code; no length finds a reworded
# problem.
NGRAM_WORDS = 13
MIN_WORDS, MIN_CHARACTERS = 8, 40
PORTION = 2**20  # characters of a row that are searched at a time
SEARCHED_TOGETHER = 16  # rows

Words = tuple[str, ...]
_WORD = re.compile(r"\w+")
# What each ASCII character becomes: a word character its lower-case form, any other character a space.
_ASCII_WORDS = bytes(ord(chr(code).lower()) if _WORD.match(chr(code)) else ord(" ") for code in range(128)) * 2
_WORD_START = re.compile(r"\b\w")
_SPACE = re.compile(r"\s+")
# The same problem is HumanEval/23 in one file and HumanEval_23_strlen in another.
_NUMBERED = re.compile(r"(humaneval|mbpp)[/_](\d+)(?:_|$)", re.IGNORECASE)
_COMMENT = re.compile(r"^\s*(?://+|--|#(?!!|include)|\*)(.*)$", re.MULTILINE)
_EXAMPLES = re.compile(r">>>|\n\s*(?:for )?examples?\b|\n\s*assert |\bfor example\b", re.IGNORECASE)


@dataclass(frozen=True)
class Overlap:
    """The text that a row shares with a benchmark's problem. ``benchmark``: the file's label; ``excerpt``: the words."""

    task_id: str
    benchmark: str
    kind: Literal["substring", "n_gram"]
    excerpt: str


@dataclass(frozen=True)
class _Problem:
    """A problem's texts, whatever its kind; ``solution`` is "" if the benchmark has none."""

    task_id: str
    benchmark: str
    prompt: str
    solution: str


@dataclass(frozen=True)
class _Whole:
    """A text that must not be in a row in full. ``exact``: compare all characters except white space."""

    task_id: str
    benchmark: str
    text: str
    exact: bool

    def is_in(self, row: str) -> bool:
        if self.exact:
            return _SPACE.sub("", self.text) in _SPACE.sub("", row)
        return f" {' '.join(_words(self.text))} " in f" {' '.join(_words(row))} "


class Contamination:
    """An index that finds the problems of benchmark files in rows. Raises DataError for a file that cannot be used.

    ``labels``: a unique label for each file.
    """

    def __init__(self, benchmarks: list[Path]) -> None:
        self.labels = path_labels([str(path) for path in benchmarks])
        problems = [
            problem for path, label in zip(benchmarks, self.labels, strict=True) for problem in _problems(path, label)]
        self._wholes: dict[Words, list[_Whole]] = defaultdict(list)
        for problem in problems:
            for whole in _wholes(problem):
                self._wholes[tuple(_words(whole.text)[:MIN_WORDS])].append(whole)
        self._ngrams = _own_ngrams(problems)
        # Every run of n words contains a run of (n + 1) / 2 words that begins at a multiple of that length. Only these runs
        # of a row are looked up, and almost every row needs no more.
        self._begun, self._inner = (
            {part for run in runs for part in _runs(list(run), (len(run) + 1) // 2)} for runs in (self._wholes, self._ngrams))
        wholes = [whole for of_run in self._wholes.values() for whole in of_run]
        self._overlap = max((len(_SPACE.sub("", whole.text)) for whole in wholes), default=0)

    def find_in(self, rows: list[list[str]]) -> dict[int, Overlap]:
        """The overlap of each row (a list of its texts) that shares text with a problem, by index."""
        found: dict[int, Overlap] = {}
        for start in range(0, len(rows), SEARCHED_TOGETHER):
            some = rows[start:start + SEARCHED_TOGETHER]
            # Most rows have no overlap, and text in one of them is also in all of them joined.
            if self._may_be_in("\n".join(chain.from_iterable(some))):
                found |= {start + place: it for place, texts in enumerate(some) if (it := self.find(texts))}
        return found

    def _may_be_in(self, text: str) -> bool:
        if len(text) > PORTION:
            return True
        words = _words(text)
        return not (
            self._begun.isdisjoint(_aligned(words, (MIN_WORDS + 1) // 2))
            and self._inner.isdisjoint(_aligned(words, (NGRAM_WORDS + 1) // 2)))

    def find(self, texts: list[str]) -> Overlap | None:
        """The overlap of a row of these texts with a problem; None if there is none.

        Cost: one pass over the words of the row, whatever the number of problems; memory for one portion of a long row.
        """
        n_gram = None
        for portion in _portions("\n".join(texts), max(self._overlap, NGRAM_WORDS)):
            words = _words(portion)
            if not self._begun.isdisjoint(_aligned(words, (MIN_WORDS + 1) // 2)):
                starts = (whole for run in _runs(words, MIN_WORDS) for whole in self._wholes.get(run, ()))
                hit = next((whole for whole in starts if whole.is_in(portion)), None)
                if hit:
                    return Overlap(hit.task_id, hit.benchmark, "substring", _shortened(hit.text))
            if n_gram is None and not self._inner.isdisjoint(_aligned(words, (NGRAM_WORDS + 1) // 2)):
                run = next((run for run in _runs(words, NGRAM_WORDS) if run in self._ngrams), None)
                n_gram = None if run is None else Overlap(*self._ngrams[run], "n_gram", " ".join(run))
        return n_gram


def _problems(path: Path, label: str) -> Iterator[_Problem]:
    kind = kind_of(path)
    for problem in kind.load_problems(path):
        yield _Problem(problem.task_id, label, *kind.texts(problem))


def _wholes(problem: _Problem) -> Iterator[_Whole]:
    for text, exact in ((_wording(problem.prompt), False), (problem.solution, True)):
        if len(_words(text)) >= MIN_WORDS and len(_SPACE.sub("", text)) >= MIN_CHARACTERS:
            yield _Whole(problem.task_id, problem.benchmark, text, exact)


def _own_ngrams(problems: list[_Problem]) -> dict[Words, tuple[str, str]]:
    """The runs of words that only one problem has, with its task_id and benchmark."""
    owners: dict[Words, set[tuple[str, str]]] = defaultdict(set)
    for problem in problems:
        for text in (problem.prompt, problem.solution):
            for run in _runs(_words(text), NGRAM_WORDS):
                owners[run].add((problem.task_id, problem.benchmark))
    return {
        run: min(of_run) for run, of_run in owners.items() if len({_identity(task_id) for task_id, _ in of_run}) == 1}


def _identity(task_id: str) -> str:
    """The name of a problem, the same in every file and language."""
    numbered = _NUMBERED.match(task_id)
    return f"{numbered[1].lower()}/{numbered[2]}" if numbered else task_id


def _wording(prompt: str) -> str:
    """The prose of a prompt's last docstring, or of its comments if it is not Python, up to its examples; the whole
    prompt if it has neither."""
    try:
        tree = ast.parse(prompt.rstrip() + "\n")
    except SyntaxError:
        comments = "\n".join(_COMMENT.findall(prompt))
        return _EXAMPLES.split(comments)[0] if comments.strip() else prompt
    documented = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    docstrings = [text for node in ast.walk(tree) if isinstance(node, documented) and (text := ast.get_docstring(node))]
    return _EXAMPLES.split(docstrings[-1])[0] if docstrings else prompt


def _words(text: str) -> list[str]:
    if text.isascii():  # the same in a seventh of the time
        return text.encode().translate(_ASCII_WORDS).decode().split()
    return _WORD.findall(text.lower())


def _runs(words: list[str], length: int) -> Iterator[Words]:
    """Every run of ``length`` consecutive words."""
    return zip(*(words[start:] for start in range(length)))  # noqa: B905 (the shortest one ends it)


def _aligned(words: list[str], length: int) -> Iterator[Words]:
    """The runs of ``length`` words that begin at a multiple of ``length``."""
    return zip(*[iter(words)] * length)  # noqa: B905 (what is left over is not a run)


def _portions(text: str, overlap: int) -> Iterator[str]:
    """A text in parts of about PORTION characters, cut between words; ``overlap`` words of each are in the next one too."""
    start = 0
    while len(text) - start > PORTION:
        begins = _WORD_START.search(text, start + PORTION)
        cut = begins.start() if begins else len(text)
        end = cut
        for word in islice(_WORD.finditer(text, cut), overlap + 1):
            end = word.start()
        yield text[start:end if end > cut else len(text)]
        start = cut
    yield text[start:]


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."
