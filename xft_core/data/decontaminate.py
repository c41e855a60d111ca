"""Which training rows contain a problem of a benchmark: its text or its solution, whole or in a long run of words.

Two texts are compared by their words (letters, digits and underscore, in lower case), so that indentation, line breaks,
quotes and comment signs play no part. A row is contaminated when it holds

    substring   a problem's docstring or comment (its wording, without examples) or its canonical solution, whole. Of at least
                MIN_WORDS words and MIN_CHARACTERS characters: shorter ones (``return a + b``) are anyone's.
                For solutions every character but white space counts, not only the words.
    n_gram      NGRAM_WORDS consecutive words of a problem's prompt or solution. Runs that several problems of
                the benchmarks share (imports, ``for i in range(len(``, stock phrases) are nobody's and do not count.
                One problem in several files (HumanEval+, its mini version, MultiPL-E in eleven languages) is one problem.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xft_core.benchmarks.kinds import kind_of

# GPT-3's length (Brown et al. 2020, appendix C). Shorter runs flag idioms of code; a problem told in other words is out
# of reach of any length.
NGRAM_WORDS = 13
MIN_WORDS, MIN_CHARACTERS = 8, 40

Words = tuple[str, ...]
_WORD = re.compile(r"\w+")
_SPACE = re.compile(r"\s+")
# The same problem is HumanEval/23 in one file and HumanEval_23_strlen in another.
_NUMBERED = re.compile(r"(humaneval|mbpp)[/_](\d+)(?:_|$)", re.IGNORECASE)
_COMMENT = re.compile(r"^\s*(?://+|--|#(?!!|include)|\*)(.*)$", re.MULTILINE)
_EXAMPLES = re.compile(r">>>|\n\s*(?:for )?examples?\b|\n\s*assert |\bfor example\b", re.IGNORECASE)


@dataclass(frozen=True)
class Overlap:
    """What a row has in common with a benchmark's problem. ``benchmark``: the file's name; ``excerpt``: the words."""

    task_id: str
    benchmark: str
    kind: Literal["substring", "n_gram"]
    excerpt: str


@dataclass(frozen=True)
class _Problem:
    """A problem's texts, whatever its kind; ``solution`` is "" where the benchmark has none."""

    task_id: str
    benchmark: str
    prompt: str
    solution: str


@dataclass(frozen=True)
class _Whole:
    """A text that must not be in a row as a whole. ``exact``: compare all characters but white space."""

    task_id: str
    benchmark: str
    text: str
    exact: bool

    def is_in(self, row: str) -> bool:
        if self.exact:
            return _SPACE.sub("", self.text) in _SPACE.sub("", row)
        return f" {' '.join(_words(self.text))} " in f" {' '.join(_words(row))} "


def find_contaminated(rows: list[list[str]], benchmarks: list[Path]) -> dict[int, Overlap]:
    """The rows (each a list of its texts) that contain a problem of the benchmark files, by index, with the reason.

    Cost: one pass over the words of the rows, whatever the number of problems. Raises DataError for a benchmark file
    that cannot be used.
    """
    problems = [problem for path in benchmarks for problem in _problems(path)]
    wholes: dict[Words, list[_Whole]] = defaultdict(list)
    for problem in problems:
        for whole in _wholes(problem):
            wholes[tuple(_words(whole.text)[:MIN_WORDS])].append(whole)
    ngrams = _own_ngrams(problems)

    found: dict[int, Overlap] = {}
    for index, texts in enumerate(rows):
        text = "\n".join(texts)
        words = _words(text)
        # Almost every row ends here, without a loop in Python over its words.
        if not wholes.keys().isdisjoint(_runs(words, MIN_WORDS)):
            starts = (whole for run in _runs(words, MIN_WORDS) for whole in wholes.get(run, ()))
            hit = next((whole for whole in starts if whole.is_in(text)), None)
            if hit:
                found[index] = Overlap(hit.task_id, hit.benchmark, "substring", _shortened(hit.text))
                continue
        if not ngrams.keys().isdisjoint(_runs(words, NGRAM_WORDS)):
            run = next(run for run in _runs(words, NGRAM_WORDS) if run in ngrams)
            found[index] = Overlap(*ngrams[run], "n_gram", " ".join(run))
    return found


def _problems(path: Path) -> Iterator[_Problem]:
    kind = kind_of(path)
    for problem in kind.load_problems(path):
        yield _Problem(problem.task_id, path.name, *kind.texts(problem))


def _wholes(problem: _Problem) -> Iterator[_Whole]:
    for text, exact in ((_wording(problem.prompt), False), (problem.solution, True)):
        if len(_words(text)) >= MIN_WORDS and len(_SPACE.sub("", text)) >= MIN_CHARACTERS:
            yield _Whole(problem.task_id, problem.benchmark, text, exact)


def _own_ngrams(problems: list[_Problem]) -> dict[Words, tuple[str, str]]:
    """The runs of words that one problem alone has, with its task_id and benchmark."""
    owners: dict[Words, set[tuple[str, str]]] = defaultdict(set)
    for problem in problems:
        for text in (problem.prompt, problem.solution):
            for run in _runs(_words(text), NGRAM_WORDS):
                owners[run].add((problem.task_id, problem.benchmark))
    return {
        run: min(of_run) for run, of_run in owners.items() if len({_identity(task_id) for task_id, _ in of_run}) == 1}


def _identity(task_id: str) -> str:
    """One name for a problem in whatever file and language."""
    numbered = _NUMBERED.match(task_id)
    return f"{numbered[1].lower()}/{numbered[2]}" if numbered else task_id


def _wording(prompt: str) -> str:
    """The prose of a prompt's last docstring, or of its comments where it is not Python, up to its examples; the whole
    prompt if it has none."""
    try:
        tree = ast.parse(prompt.rstrip() + "\n")
    except SyntaxError:
        comments = "\n".join(_COMMENT.findall(prompt))
        return _EXAMPLES.split(comments)[0] if comments.strip() else prompt
    documented = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    docstrings = [text for node in ast.walk(tree) if isinstance(node, documented) and (text := ast.get_docstring(node))]
    return _EXAMPLES.split(docstrings[-1])[0] if docstrings else prompt


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: list[str], length: int) -> Iterator[Words]:
    """Every run of ``length`` consecutive words."""
    return zip(*(words[start:] for start in range(length)))  # noqa: B905 (the shortest one ends it)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."
