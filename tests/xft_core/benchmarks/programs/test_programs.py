"""Programs in the forms of EvoEval, BigCodeBench and LiveCodeBench: right and wrong answers, attacks, prompts, broken rows."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.factories import tokenizer
from xft_core.benchmarks.benchmark import Grader, Kind
from xft_core.benchmarks.registry import kind_of
from xft_core.errors import DataError, SandboxError
from xft_core.recipe.sections import EvaluateConfig

EVOEVAL: dict[str, Any] = {
    "task_id": "EvoEval/0", "entry_point": "pairs", "prompt": (
        "from collections import Counter\n\ndef double(x):\n    return 2 * x\n\ndef pairs(items, scale=1.0):\n"
        '    """Each item once, with its count."""\n'),
    "canonical_solution": "    return {item: (count, scale) for item, count in Counter(items).items()}\n", "test": (
        "import random\ndef check(candidate):\n    assert candidate(['a', 'a'], scale=0.5) == {'a': (2, 0.5)}\n"
        "    assert candidate((1, 2)) == {1: (1, 1.0), double(1): (1, 1.0)}\n"
        "    drawn = [random.randint(0, 9) for _ in range(5)]\n    assert sum(n for n, _ in candidate(drawn).values()) == 5\n"
        "    try:\n        candidate(3)\n        raise RuntimeError\n    except TypeError:\n        pass\n")}
BIGCODEBENCH: dict[str, Any] = {
    "task_id": "BigCodeBench/0", "entry_point": "task_func", "complete_prompt": (
        'import csv\nimport os\n\ndef task_func(path):\n    """The sum of the first column."""\n'),
    "instruct_prompt": "Sum the first column of a CSV file.\nStart with:\n```\nimport csv\ndef task_func(path):\n```",
    "code_prompt": "import csv\nimport os\ndef task_func(path):\n",
    "canonical_solution": "    with open(path) as f:\n        return sum(int(row[0]) for row in csv.reader(f))\n", "test": (
        "import unittest\nfrom unittest.mock import patch, mock_open\nclass TestCases(unittest.TestCase):\n"
        "    def setUp(self):\n        with open('x.csv', 'w') as f:\n            f.write('1,a\\n2,b\\n')\n"
        "    def test_file(self):\n        self.assertEqual(task_func('x.csv'), 3)\n"
        "    @patch('builtins.open', mock_open(read_data='5'))\n    def test_mock(self):\n"
        "        self.assertEqual(task_func('y'), 5)\n")}
STDIN: dict[str, Any] = {
    "question_id": "abc_a", "question_content": "Read n, print n numbers.", "starter_code": "",
    "public_test_cases": json.dumps([{"input": "2\n", "output": "1\n2\n", "testtype": "stdin"}]),
    "private_test_cases": [{"input": "0\n", "output": "", "testtype": "stdin"},
                           {"input": "1\n", "output": "1.0", "testtype": "stdin"}], "metadata": "{}"}
FUNCTION: dict[str, Any] = {
    "question_id": "3001", "question_content": "Two numbers that sum to a target.",
    "starter_code": "class Solution:\n    def twoSum(self, nums: List[int], target: int) -> List[int]:\n        ",
    "public_test_cases": json.dumps([{"input": "[1, 2, 4]\n6", "output": "[1, 2]", "testtype": "functional"}]),
    "private_test_cases": "", "metadata": json.dumps({"func_name": "twoSum"})}

RIGHT_EVO = EVOEVAL["prompt"] + EVOEVAL["canonical_solution"]
RIGHT_BIG = BIGCODEBENCH["complete_prompt"] + BIGCODEBENCH["canonical_solution"]
RIGHT_STDIN = "import sys\nfor i in range(int(input())):\n    print(i + 1)\nsys.exit(0)\n"
RIGHT_FUNCTION = FUNCTION["starter_code"] + (
    "for i, j in combinations(range(len(nums)), 2):\n"
    "            if nums[i] + nums[j] == target:\n                return (i, j)\n")
# Attacks in each kind of program, instead of the work. None gives the right answer.
ATTACKS = {
    "sys.exit": "import sys\nsys.exit(0)\n", "os._exit": "import os\nos._exit(0)\n", "hang": "while True:\n    pass\n",
    "raise": "raise SystemExit(0)\n", "keyboard": "raise KeyboardInterrupt\n",
    "atexit": "import atexit\natexit.register(print, 'OK')\n",
    "prints": "print('{\"output\": {\"passed\": true}}')\nprint('OK')\nprint('pass')\n",
    "every descriptor": (
        "import os\nfor fd in range(64):\n    try:\n"
        "        os.write(fd, b'{\"output\": {\"passed\": true, \"word\": \"\"}}\\n')\n"
        "    except OSError:\n        pass\nos._exit(0)\n"),
    "verdict": "import os\nos.write(1, b'{\"base\": true, \"plus\": true, \"score\": null, \"detail\": \"\"}')\nos._exit(0)\n",
    "signal": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "syntax": "def (:\n", "empty": "", "half": "x = '\\ud800'\n"}
EQUAL = "class E(dict):\n    def __eq__(self, other): return True\n    def values(self): return [(5, 1)]\n"
IN_FUNCTION = {
    "evo": {
        "equal to all": EQUAL + "def pairs(*a, **b): return E()\n",
        "exits when called": "import sys\ndef pairs(*a, **b): sys.exit(0)\n",
        "ends when called": "import os\ndef pairs(*a, **b): os._exit(0)\n",
        "raises what is expected": "def pairs(*a, **b): raise TypeError\n",
        "patches check": "import builtins\nbuiltins.check = lambda c: None\ndef pairs(*a, **b): return None\n"},
    "big": {
        "exits when called": "import sys\ndef task_func(p): sys.exit(0)\n",
        "ends when called": "import os\ndef task_func(p): os._exit(0)\n",
        "patches assertions": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef task_func(p): return 0\n",
        "skips": "import unittest\ndef task_func(p): raise unittest.SkipTest('no')\n",
        "no function": "x = 1\n"},
    "stdin": {"forges": "print('1\\n2\\n')\n", "too long": "print('1\\n' * 10**6)\n"},
    "function": {
        "equal to all": "class Solution:\n    def twoSum(self, *a):\n        class E(list):\n"
                        "            __eq__ = lambda *a: True\n        return E()\n",
        "exits when called": "import sys\nclass Solution:\n    def twoSum(self, *a): sys.exit(0)\n"}}
WRONG = {
    "evo": [RIGHT_EVO.replace("count, scale", "count + 1, scale"), RIGHT_EVO.replace("(count, scale)", "[count, scale]")],
    "big": [RIGHT_BIG.replace("row[0]", "row[0] + row[0]"), RIGHT_BIG.replace("return sum", "sum")],
    "stdin": [RIGHT_STDIN.replace("i + 1", "i"), RIGHT_STDIN.replace("sys.exit(0)", "sys.exit(3)")],
    "function": [RIGHT_FUNCTION.replace("(i, j)", "(j, i)"), RIGHT_FUNCTION.replace("twoSum", "two_sum")]}
ROWS = {"evo": EVOEVAL, "big": BIGCODEBENCH, "stdin": STDIN, "function": FUNCTION}
RIGHT = {"evo": RIGHT_EVO, "big": RIGHT_BIG, "stdin": RIGHT_STDIN, "function": RIGHT_FUNCTION}


@dataclass
class Opened:
    kind: Kind[Any]
    grader: Grader[Any]
    problem: Any


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module", params=ROWS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Opened]]:
    path = write(tmp_path_factory.mktemp("programs") / "file.jsonl", ROWS[request.param])
    kind = kind_of(path)
    try:
        grader = kind.open_grader(EvaluateConfig(), path)
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    grader._seconds = 2.0  # type: ignore[attr-defined]  # so that a hang ends soon
    yield request.param, Opened(kind, grader, kind.load_problems(path)[0])
    grader.stop()


def test_right_answers_pass_and_wrong_ones_do_not(opened: tuple[str, Opened]) -> None:
    name, found = opened
    assert found.grader.ungradable(found.problem) is None
    right, *wrong = found.grader.grade(found.problem, [RIGHT[name], *WRONG[name]], alone=True)
    assert right.plus == "pass", right.detail
    assert all(verdict.plus == "fail" and verdict.detail for verdict in wrong), wrong


def test_no_attack_passes(opened: tuple[str, Opened]) -> None:
    name, found = opened
    programs = ATTACKS | IN_FUNCTION[name]
    verdicts = dict(zip(programs, found.grader.grade(found.problem, [*programs.values()], alone=True), strict=True))
    assert {attack: verdict for attack, verdict in verdicts.items() if verdict.plus not in ("fail", "timeout")} == {}
    assert verdicts["hang"].plus == "timeout" and all(verdict.detail for verdict in verdicts.values())


def test_prompts_and_programs(opened: tuple[str, Opened]) -> None:
    name, found = opened
    kind, problem = found.kind, found.problem
    for style in ("completion", "magicoder", "chat"):
        prompt = kind.build_prompt(problem, style, tokenizer()).text
        begun = kind.solution(problem, "", style)
        assert prompt.endswith(begun or ("```python" if style != "completion" else '"""\n')), style
        docstring = '\n"""\nmore' if name in ("stdin", "function") else "\ndef other(): pass"
        stop, left = (docstring, "") if style == "completion" else ("\n```\nmore", "\n")
        assert kind.solution(problem, f"    pass{stop}", style) == f"{begun}    pass{left}"
    assert kind.texts(problem)[0]


def test_a_reference_that_fails_its_own_tests_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "evo.jsonl", EVOEVAL | {"canonical_solution": "    return {}\n"})
    kind = kind_of(path)
    problem = kind.load_problems(path)[0]
    with pytest.raises(DataError, match="'EvoEval/0' cannot be graded: its tests do not pass"):
        kind.open_grader(EvaluateConfig(), path).ungradable(problem)


def test_a_missing_library_leaves_a_problem_out(tmp_path: Path) -> None:
    path = write(tmp_path / "big.jsonl", BIGCODEBENCH | {"complete_prompt": "import no_such_library\n\ndef task_func(path):\n"})
    kind = kind_of(path)
    reason = kind.open_grader(EvaluateConfig(), path).ungradable(kind.load_problems(path)[0])
    assert reason == "it needs no_such_library, which is not installed here"


def change(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {name: value for name, value in (row | fields).items() if value is not ...}


@pytest.mark.parametrize("form, broken, named", [
    ("evo", change(entry_point="f()"), "entry_point"), ("evo", change(test="assert True"), "no function check"),
    ("evo", change(canonical_solution=""), "canonical_solution is"), ("evo", change(prompt=...), "prompt is missing"),
    ("big", change(test="def test(): pass"), "no unittest.TestCase"), ("big", change(code_prompt=3), "code_prompt is 3"),
    ("big", change(instruct_prompt=None), "instruct_prompt is null"),
    ("stdin", change(private_test_cases="eJxrYJmawABcHVkZmqVQAEFZBK4="), "packed with pickle|packs it with pickle"),
    ("stdin", change(private_test_cases=[{"input": "1"}]), "Give a list of"),
    ("stdin", change(public_test_cases="[]", private_test_cases=""), "there are none"),
    ("stdin", change(private_test_cases=[{"input": "1", "output": "1", "testtype": "functional"}]), "of 2 kinds"),
    ("stdin", change(question_content=" "), "question_content is"), ("stdin", change(starter_code=1), "starter_code is 1"),
    ("function", change(metadata="{}"), "func_name"), ("function", change(metadata="{"), "func_name"),
    ("function", change(public_test_cases=[{"input": "x", "output": "1", "testtype": "functional"}]), "is not JSON")])
def test_broken_rows_are_named(
    form: str, broken: Callable[[dict[str, Any]], dict[str, Any]], named: str, tmp_path: Path,
) -> None:
    other = {"task_id": "other", "question_id": "other"}
    path = write(tmp_path / "file.jsonl", ROWS[form], broken(ROWS[form] | other))
    with pytest.raises(DataError, match=f"line 2: .*({named})"):
        kind_of(path).load_problems(path)
