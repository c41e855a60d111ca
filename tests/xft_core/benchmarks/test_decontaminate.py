import json
import time
from pathlib import Path

import pytest

from xft_core.benchmarks.decontaminate import NGRAM_WORDS, Contamination

SHARED = Path(__file__).parents[4] / "shared" / "data"
WORDING = "Return the largest number that can be reached from the start by steps of three or five."
HEADER = "from typing import List\n\ndef reach(steps: List[int]) -> int:\n"
PROMPT = f'{HEADER}    """ {WORDING}\n    >>> reach([1])\n    3\n    """\n'
SOLUTION = (
    "    best = 0\n    for step in steps:\n        if step % 3 == 0 or step % 5 == 0:\n"
    "            best = max(best, step)\n    return best\n")
LOOPS = "def reach(steps):\n    for index in range(len(steps)):\n        for other in range(index + 1, len(steps)):\n"


def problem(task_id: str, prompt: str, solution: str) -> dict[str, object]:
    return {"task_id": task_id, "prompt": prompt, "entry_point": "reach", "canonical_solution": solution,
            "base_input": [[[3]]], "plus_input": []}


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    rows = [
        problem("Own/reach", PROMPT, SOLUTION),
        problem("Own/short", 'def reach(xs):\n    """ Sum. """\n', "    return sum(xs)\n"),
        problem("Own/loop", 'def reach(steps):\n    """ Count pairs. """\n', LOOPS + "            return 1\n"),
        problem("Own/loops", 'def reach(steps):\n    """ Count all. """\n', LOOPS + "            return 2\n"),
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_wording_and_solutions_are_found_however_they_are_laid_out(benchmark: Path) -> None:
    rows = [
        ["Write a haiku.", "An old silent pond"],
        [f"# {WORDING.upper().replace(' that ', chr(10) + '#   that ')}", "pass"],
        ["Solve this", SOLUTION.replace("    ", "\t").replace(" % ", "%")],
        ["Tell me: how do I return the largest number that can be reached from the start by steps?", "No idea."],
    ]
    found = Contamination([benchmark]).find_in(rows)
    assert sorted(found) == [1, 2, 3]
    assert {found[index].task_id for index in found} == {"Own/reach"}
    assert [found[index].kind for index in (1, 2, 3)] == ["substring", "substring", "n_gram"]
    assert found[1].benchmark == "own.jsonl" and found[1].excerpt == WORDING
    assert len(found[3].excerpt.split()) == NGRAM_WORDS


@pytest.mark.parametrize("character", ["", "\u00e9"], ids=["ASCII", "more than ASCII"])
@pytest.mark.parametrize("between", [chr(code) for code in range(128) if not chr(code).isalnum() and chr(code) != "_"])
def test_every_character_between_words_counts_alike(benchmark: Path, between: str, character: str) -> None:
    finder = Contamination([benchmark])
    assert finder.find([WORDING.replace(" ", between), character])
    assert not finder.find([WORDING.replace(" ", "_"), character])


def test_files_of_one_name_are_told_apart(benchmark: Path) -> None:
    other = benchmark.parent / "other" / benchmark.name
    other.parent.mkdir()
    wording = "Tell how many of the words of a sentence begin and end with one and the same letter of the alphabet."
    other.write_text(json.dumps(problem("Else/0", f'def reach(s):\n    """ {wording} """\n', "    return 1\n")) + "\n")
    found = Contamination([benchmark, other]).find_in([[WORDING, "a"], [wording, "b"]])
    assert [found[0].benchmark, found[1].benchmark] == [f"{benchmark.parent.name}/own.jsonl", "other/own.jsonl"]


def test_what_is_anyones_is_not_contamination(benchmark: Path) -> None:
    rows = [
        ["Sum a list.", "def reach(xs):\n    return sum(xs)\n"],
        ["Pairs", LOOPS],
        ["Steps", "best = 0\nfor step in steps:\n    if step > 1:\n        best = max(best, step)\nreturn best"],
        ["Imports", HEADER + "    pass"],
    ]
    assert Contamination([benchmark]).find_in(rows) == {}


def test_rows_come_by_the_hundred_thousand(benchmark: Path) -> None:
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()
    rows = [[" ".join(words[(index * step) % 12] for step in range(150))] for index in range(10_000)]
    rows.append([WORDING])
    started = time.process_time()
    assert list(Contamination([benchmark]).find_in(rows)) == [10_000]
    assert time.process_time() - started < 4


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize("name", ["HumanEvalPlus-v0.1.10.jsonl.gz", "MbppPlus-v0.2.0.jsonl.gz"])
def test_real_data_against_real_benchmarks(name: str) -> None:
    benchmark = SHARED / "benchmarks" / name
    from xft_core.benchmarks.evalplus.benchmark import EvalPlus

    rows = [[row["instruction"], row["input"], row["output"]]
            for row in json.loads((SHARED / "instruct" / "codealpaca_4k.json").read_text())]
    assert len(Contamination([benchmark]).find_in(rows)) < 0.005 * len(rows)
    problems = EvalPlus().load_problems(benchmark)
    leaked = [["Complete this", "```python\n" + problem.prompt + problem.canonical_solution + "```"] for problem in problems]
    found = Contamination([benchmark]).find_in(leaked)
    # "Write a function to multiply two integers." and return x * y: too short to be specific to a problem.
    assert {problem.task_id for index, problem in enumerate(problems) if index not in found} <= {"Mbpp/127"}


def multipl_e(directory: Path, language: str, prompts: dict[str, str]) -> Path:
    path = directory / f"humaneval-{language}.jsonl"
    path.write_text("".join(json.dumps({
        "name": name, "language": language, "prompt": prompt, "tests": "test();", "stop_tokens": ["\nfunction "]}) + "\n"
        for name, prompt in prompts.items()))
    return path


def test_one_problem_in_several_languages_is_one_problem(tmp_path: Path) -> None:
    """Text that a problem shares with itself in another file stays its own, unlike text shared by problems of one file."""
    imports = "import java.util.*;\nimport java.io.*;\nimport java.math.*;\nimport java.security.*;\nclass Problem {\n"
    tail = "Numbers are given as they come and none of them is ever looked at more than once."
    paths = [
        multipl_e(tmp_path, "js", {"HumanEval_7_reach": f"//{WORDING}\n// >>> reach([1])\n// 3\nfunction reach(steps){{\n"}),
        multipl_e(tmp_path, "java", {
            "HumanEval_7_reach": f"{imports}    // {WORDING} {tail}\n    public static long reach(long[] steps) {{\n",
            "HumanEval_8_sum": f"{imports}    // Sum.\n    public static long sum(long[] steps) {{\n"})]
    python = tmp_path / "python.jsonl"
    python.write_text(json.dumps(problem("HumanEval/7", PROMPT, SOLUTION)) + "\n")
    rows = [
        ["Solve", "Tell me: how do I return the largest number that can be reached from the start by steps?"],
        ["Solve", f"/** {WORDING.upper()} */"],
        ["Solve", f"Mind that {tail}"],
        ["Imports", f"{imports}    public static void main(String[] arguments) {{}}\n}}"],
    ]
    found = Contamination([*paths, python]).find_in(rows)
    assert {index: (overlap.kind, overlap.task_id) for index, overlap in found.items()} == {
        0: ("n_gram", "HumanEval/7"), 1: ("substring", "HumanEval_7_reach"), 2: ("n_gram", "HumanEval_7_reach")}
    assert found[1].benchmark == "humaneval-js.jsonl"


@pytest.mark.skipif(not (SHARED / "benchmarks" / "multipl-e").is_dir(), reason="the shared data is not here")
def test_real_multipl_e_beside_humaneval_plus() -> None:
    from xft_core.benchmarks.multipl_e.benchmark import MultiPLE

    files = [SHARED / "benchmarks" / "multipl-e" / f"humaneval-{language}.jsonl" for language in ("js", "java", "rs", "sh")]
    leaked = [[problem.prompt] for path in files for problem in MultiPLE().load_problems(path)]
    with_python = [*files, SHARED / "benchmarks" / "HumanEvalPlus-v0.1.10.jsonl.gz"]
    assert len(Contamination(with_python).find_in(leaked)) == len(leaked) == 633
