import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.factories import shared_data
from xft_core.benchmarks.benchmark import NOT_GRADED, Verdict
from xft_core.benchmarks.evalplus.benchmark import EvalPlus
from xft_core.benchmarks.evalplus.grading import EvalPlusGrader
from xft_core.benchmarks.evalplus.problems import Problem
from xft_core.errors import DataError, SandboxError, XftError
from xft_core.files.journal import append, read_appended
from xft_core.recipe.sections import EvaluateConfig
from xft_core.reporting.statistics import interval_95
from xft_core.sandbox.bubblewrap import ENVIRONMENT, open_sandbox
from xft_core.stages.configs import EvaluateStage
from xft_core.stages.evaluate import grade_all, group_scores, pass_at_k, scores
from xft_core.stages.run import run_stage
from xft_core.store.artifacts import publish
from xft_core.store.results.evaluate import GroupScore
from xft_core.store.workspace import Workspace

HUMANEVAL = shared_data("benchmarks/HumanEvalPlus-v0.1.10.jsonl.gz")
MBPP = HUMANEVAL.with_name("MbppPlus-v0.2.0.jsonl.gz")

try:
    open_sandbox("bubblewrap")
    NO_SANDBOX = ""
except SandboxError as error:
    NO_SANDBOX = str(error)
needs_sandbox = pytest.mark.skipif(bool(NO_SANDBOX), reason=NO_SANDBOX or "-")

RIGHT, WRONG = "def f(x):\n    return x + 1\n", "def f(x):\n    return x - 1\n"
ONLY_BASE = "def f(x):\n    return x + 1 if x < 5 else 0\n"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problem(task_id: str, **changes: Any) -> dict[str, Any]:
    return {"task_id": task_id, "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x + 1\n",
            "base_input": [[1], [2]], "plus_input": [[5], [0.5]], "atol": 0} | changes


def evaluate(tmp_path: Path, problems: list[dict[str, Any]], samples: list[tuple[str, str]], **settings: Any) -> Any:
    """Return the stage's metrics and the verdicts (base, plus) by task_id."""
    stage = EvaluateStage(
        output=tmp_path / "out", benchmark=str(write(tmp_path / "own.jsonl", problems)),
        samples=write(tmp_path / "in.jsonl", [{"task_id": task_id, "solution": text} for task_id, text in samples]),
        evaluate=EvaluateConfig(**({"min_time_limit": 1, "workers": 2, "memory_limit_mb": 2048} | settings)))
    return run_stage(stage).manifest.metrics, verdicts_in(stage.output)


def verdicts_in(output: Path) -> dict[str, list[tuple[str, str]]]:
    results = json.loads((output / "results.json").read_text())
    return {item["task_id"]: [(sample["base"], sample["plus"]) for sample in item["samples"]]
            for item in results["problems"]}


@needs_sandbox
def test_verdicts_pass_at_k_and_files(tmp_path: Path) -> None:
    samples = [("Own/b", RIGHT), ("Own/a", WRONG), ("Own/b", ONLY_BASE), ("Own/b", RIGHT), ("Own/a", "def f(x:"),
               ("Own/a", "def g(x):\n    return x + 1")]
    problems = [problem("Own/a"), problem("Own/b"), problem("Own/not answered")]
    metrics, verdicts = evaluate(tmp_path, problems, samples, k=[1, 2, 10])
    assert list(verdicts.items()) == [
        ("Own/a", [("fail", "fail")] * 3), ("Own/b", [("pass", "pass"), ("pass", "fail"), ("pass", "pass")])]
    assert metrics.pop("seconds") > 0
    interval = interval_95([0, 2 / 3], 6)
    assert metrics == pytest.approx({
        "base_pass_at_1": 1 / 2, "plus_pass_at_1": 1 / 3, "base_pass_at_2": 1 / 2, "plus_pass_at_2": 1 / 2,
        "plus_interval_low": interval[0], "plus_interval_high": interval[1], "problems": 2,
        "samples": 6, "infrastructure_errors": 0})
    exported = [json.loads(line) for line in (tmp_path / "out" / "samples_evalplus.jsonl").read_text().splitlines()]
    assert exported == [{"task_id": name, "solution": text} for name, text in sorted(samples, key=lambda item: item[0])]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["benchmark"]["file"] == "own.jsonl" and len(results["benchmark"]["sha256"]) == 64
    assert (results["evalplus_version"], results["sandbox"]) == ("0.3.1", "bubblewrap")
    (tmp_path / "again").mkdir()
    evaluate(tmp_path / "again", problems, samples, k=[1, 2, 10])
    assert (tmp_path / "again/out/results.json").read_bytes() == (tmp_path / "out/results.json").read_bytes()


@pytest.mark.slow
def test_unsafe_is_the_same_without_the_walls(tmp_path: Path) -> None:
    killer = """
import glob, io, posix
def f(x):
    for path in glob.glob("/proc/[0-9]*/environ"):
        process = int(path.split("/")[2])
        try:
            with io.open(path, "rb") as stream:
                if b"%s" in stream.read() and process != posix.getpid():
                    posix.kill(process, 9)
        except OSError:
            pass
"""
    # Kills only this test's judge, not that of another run.
    seed = str(os.getpid() + 10**6)
    killer = killer.replace("%s", f"PYTHONHASHSEED={seed}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "PYTHONHASHSEED", seed)
        samples = [("Own/a", RIGHT), ("Own/a", killer), ("Own/a", WRONG), ("Own/a", RIGHT), ("Own/b", killer)]
        metrics, verdicts = evaluate(
            tmp_path, [problem("Own/a"), problem("Own/b")], samples, sandbox="unsafe", workers=1)
    # A sample that kills its judge whenever it is graded is no better off than a wrong one.
    failed = ("fail", "fail")
    assert verdicts == {"Own/a": [("pass", "pass"), failed, failed, ("pass", "pass")], "Own/b": [failed]}
    assert metrics["infrastructure_errors"] == 0 and metrics["samples"] == 5
    assert metrics["plus_pass_at_1"] == pytest.approx(1 / 4)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    detail = results["problems"][0]["samples"][1]["detail"]
    assert detail.startswith("it cannot be graded: the judge ended without a verdict") and "and again, alone: " in detail


class BrokenBwrap:
    """A bwrap on the PATH that fails on the calls whose numbers are in ``failing``."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, failing: Container[int]) -> None:
        self.calls, path = directory / "calls", directory / "bwrap"
        self.restart()
        path.write_text(
            f"#!{sys.executable}\nimport os, sys\nwith open({str(self.calls)!r}, 'a+') as calls:\n    calls.write('x')\n"
            f"    calls.flush()\n    calls.seek(0)\n    if len(calls.read()) in {failing!r}: sys.exit('no space left')\n"
            f"real = {shutil.which('bwrap')!r}\n"
            "os.execv(real, [real, *(real if word == sys.argv[0] else word for word in sys.argv[1:])])\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def restart(self) -> None:
        """Restart the count at 1."""
        self.calls.write_text("")


ONE = Problem("Own/a", "def f(x):\n", "f", "    return x + 1\n", [[1]], [])


@needs_sandbox
@pytest.mark.parametrize("call", [1, 2], ids=["the judge's", "the sample's"])
def test_a_sandbox_that_dies_is_tried_again_alone(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bwrap = BrokenBwrap(tmp_path, monkeypatch, {call + 100})
    grader = EvalPlusGrader(EvaluateConfig(memory_limit_mb=2048), write(tmp_path / "own.jsonl", [problem("Own/a")]))
    grader._judges.take().close()  # the sandbox that judged the grader's own check
    bwrap.calls.write_text("x" * 100)
    assert grade_all([ONE], {"Own/a": [RIGHT]}, grader, 1, tmp_path / "graded") == {"Own/a": [Verdict("pass", "pass")]}
    assert len(bwrap.calls.read_text()) == 100 + call + 2


@needs_sandbox
@pytest.mark.parametrize("last", [100, 101, 103], ids=["from the first on", "the samples'", "in the second attempt"])
def test_a_machine_that_stops_grading_gives_no_score(last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = {102, *range(last + 1, 200)} if last == 103 else range(last + 1, 200)
    bwrap = BrokenBwrap(tmp_path, monkeypatch, failing)
    grader = EvalPlusGrader(EvaluateConfig(memory_limit_mb=2048), write(tmp_path / "own.jsonl", [problem("Own/a")]))
    grader._judges.take().close()  # the sandbox that judged the grader's own check
    bwrap.calls.write_text("x" * 100)
    with pytest.raises(SandboxError, match=r"no space left|does not work on this machine"):
        grade_all([ONE], {"Own/a": [RIGHT]}, grader, 1, tmp_path / "graded")
    assert not list(read_appended(tmp_path / "graded"))


@needs_sandbox
def test_a_machine_that_cannot_grade_is_not_a_bad_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BrokenBwrap(tmp_path, monkeypatch, range(4, 99))  # the sandbox's own canaries succeed
    with pytest.raises(SandboxError, match=r"(?s)does not work on this machine.*no space left"):
        evaluate(tmp_path, [problem("Own/a")], [("Own/a", RIGHT)])
    assert not (tmp_path / "out").exists()


def test_no_sample_is_left_out_of_a_score() -> None:
    unknown, passed, failed = NOT_GRADED, Verdict("pass", "pass"), Verdict("fail", "fail")
    found = scores([[passed, unknown, unknown, unknown], [passed, failed, failed, failed]], [1, 4])
    assert found.plus_pass_at[1] == found.base_pass_at[1] == 1 / 4 and found.infrastructure_errors == 0
    left_out = scores([[unknown] * 2, [passed, failed]], [2])
    assert (left_out.plus_pass_at[1], left_out.plus_pass_at[2], left_out.infrastructure_errors) == (1 / 2, 1, 2)
    groups = group_scores({"a": {"library": "L"}, "b": {"library": "M"}}, {"a": [passed, unknown], "b": [unknown]})
    assert groups == {"library": {"L": GroupScore(problems=1, pass_at_1=1 / 2)}}
    with pytest.raises(SandboxError, match="None of the 1 samples"):
        scores([[unknown]], [1])


@needs_sandbox
def test_text_of_a_sample_stops_nothing(tmp_path: Path) -> None:
    """This applies to lone surrogates, terminal control sequences, and endless text."""
    named = "class A:\n    __module__ = {0}\n    __qualname__ = {1}\ndef f(x): return A()"
    samples = [named.format(r"'\ud800'", r"'\x1b[2J\0'"), r"def f(x): raise ValueError('\ud800\u202e\r' + 'x' * 10**7)",
               r"def f(x): return '\ud800' * 10**6", r"raise SystemExit('\0')",
               "class array(list): pass\ndef f(x): return array()"]
    metrics, verdicts = evaluate(tmp_path, [problem("Own/a")], [("Own/a", text) for text in samples])
    assert verdicts == {"Own/a": [("fail", "fail")] * len(samples)}
    assert metrics["infrastructure_errors"] == 0
    results = json.loads((tmp_path / "out" / "results.json").read_bytes().decode())
    details = [sample["detail"] for sample in results["problems"][0]["samples"]]
    assert all(detail.isprintable() and len(detail) < 2100 for detail in details), details
    assert r"<\ud800.\x1b[2J\x00>" in details[0] and details[4] == "base: f(1): returned []; expected 2"


@pytest.mark.slow
@needs_sandbox
def test_a_killed_run_goes_on_with_what_was_graded(tmp_path: Path) -> None:
    """Own/a ends at once and Own/b takes longer; the run is killed in between."""
    problems = [problem("Own/a"), problem("Own/b")]
    slow = "import time\ndef f(x):\n    time.sleep(2)\n    return x + 1\n"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({
        "output": str(tmp_path / "out"), "benchmark": str(write(tmp_path / "own.jsonl", problems)),
        "samples": str(write(tmp_path / "in.jsonl", [
            {"task_id": "Own/a", "solution": WRONG}, {"task_id": "Own/b", "solution": slow}])),
        "evaluate": {"workers": 1}}))
    command = [sys.executable, "-m", "xft_core", "evaluate", str(config)]
    graded = tmp_path / "out.partial/checkpoints/verdicts.jsonl"
    runner = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (graded.is_file() and graded.read_bytes()):
        assert runner.poll() is None
        time.sleep(0.05)
    runner.kill()
    runner.wait()
    (row,) = read_appended(graded)
    # Verdicts in the file are not graded again: this one differs from what the sample would get.
    graded.unlink()
    append(graded, json.loads(json.dumps(row).replace("fail", "pass")))
    graded.write_bytes(graded.read_bytes() + graded.read_bytes()[:20])
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert verdicts_in(tmp_path / "out") == {"Own/a": [("pass", "pass")], "Own/b": [("pass", "pass")]}


@needs_sandbox
@pytest.mark.skipif(not HUMANEVAL.is_file(), reason="the shared benchmarks are not here")
def test_humaneval_plus_canonical_and_broken(tmp_path: Path) -> None:
    problems = EvalPlus().load_problems(HUMANEVAL)
    chosen = [*problems[:4], problems[32]]
    samples = write(tmp_path / "in.jsonl", [
        {"task_id": item.task_id, "solution": item.prompt + body}
        for item in chosen for body in (item.canonical_solution, "    return None\n")])
    stage = EvaluateStage(output=tmp_path / "out", samples=samples, benchmark=str(HUMANEVAL))
    metrics = run_stage(stage).manifest.metrics
    assert verdicts_in(stage.output) == {item.task_id: [("pass", "pass"), ("fail", "fail")] for item in chosen}
    results = json.loads((stage.output / "results.json").read_text())
    assert results["release"] == "HumanEval+ v0.1.10"
    assert results["problems"][0]["samples"][1]["detail"] == (
        "base: has_close_elements([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3): returned None; expected True")
    assert metrics["plus_pass_at_1"] == 0.5


@needs_sandbox
@pytest.mark.skipif(not MBPP.is_file(), reason="the shared benchmarks are not here")
def test_mbpp_plus_has_its_types_and_rules(tmp_path: Path) -> None:
    # tuples of inputs; complex numbers; an answer that only has to exist; sets of lists; no plus inputs
    wanted = {"Mbpp/2", "Mbpp/124", "Mbpp/737", "Mbpp/232", "Mbpp/793"}
    chosen = [item for item in EvalPlus().load_problems(MBPP) if item.task_id in wanted]
    assert len(chosen) == len(wanted)
    samples = write(tmp_path / "in.jsonl", [
        {"task_id": item.task_id, "solution": item.prompt + body} for item in chosen
        for body in (item.canonical_solution, f"def {item.entry_point}(*_):\n    return ()\n")])
    stage = EvaluateStage(output=tmp_path / "out", samples=samples, benchmark=str(MBPP))
    run_stage(stage)
    for task_id, (right, wrong) in verdicts_in(stage.output).items():
        assert (right, wrong) == (("pass", "pass"), ("fail", "fail")), task_id


@needs_sandbox
@pytest.mark.slow
@pytest.mark.skipif(not HUMANEVAL.is_file(), reason="the shared benchmarks are not here")
def test_evalplus_itself_accepts_the_exported_samples(tmp_path: Path) -> None:
    """It also comes to the same verdicts."""
    with gzip.open(HUMANEVAL, "rt") as stream:
        rows = [json.loads(line) for line in itertools.islice(stream, 4)]
    samples = write(tmp_path / "in.jsonl", [
        {"task_id": row["task_id"], "solution": row["prompt"] + body}
        for row in rows for body in (row["canonical_solution"], "    return None\n")])
    benchmark = write(tmp_path / "few.jsonl", rows)
    stage = EvaluateStage(output=tmp_path / "out", samples=samples, benchmark=str(benchmark))
    run_stage(stage)
    shutil.copy(stage.output / "samples_evalplus.jsonl", tmp_path / "exported.jsonl")
    program = (
        "import os; from evalplus.evaluate import evaluate; "
        f"evaluate(dataset='humaneval', samples={str(tmp_path / 'exported.jsonl')!r}, parallel=1); os._exit(0)")
    subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True,
        env=os.environ | {"HUMANEVAL_OVERRIDE_PATH": str(benchmark), "XDG_CACHE_HOME": str(tmp_path / "cache")})
    stock = json.loads((tmp_path / "exported_eval_results.json").read_text())["eval"]
    assert {name: [(sample["base_status"], sample["plus_status"]) for sample in found] for name, found in stock.items()
            } == verdicts_in(stage.output)


@pytest.mark.parametrize(("problems", "samples", "reason"), [
    ([problem("Own/a")], [{"task_id": "Own/z", "solution": RIGHT}], "line 1: the benchmark .* has no problem 'Own/z'"),
    ([problem("Own/a")], [{"task_id": "Own/a", "completion": RIGHT}], "line 1: a sample needs"),
    ([problem("Own/a")], [{"task_id": "Own/a", "solution": "\ud800"}],
     "line 1: this cannot be read .it contains half of a surrogate"),
    ([problem("Own/a")], [], "holds no samples"),
    ([problem("Own/a", canonical_solution="    return x / 0\n")], [{"task_id": "Own/a", "solution": RIGHT}],
     r"'Own/a': its own canonical_solution fails .*ZeroDivisionError"),
])
def test_samples_and_benchmarks_that_cannot_be_used(
    tmp_path: Path, problems: list[dict[str, Any]], samples: list[dict[str, Any]], reason: str,
) -> None:
    stage = EvaluateStage(
        output=tmp_path / "out", benchmark=str(write(tmp_path / "own.jsonl", problems)),
        samples=write(tmp_path / "in.jsonl", samples), evaluate=EvaluateConfig(sandbox="unsafe"))
    with pytest.raises(DataError, match=reason):
        run_stage(stage)


def test_samples_of_another_version_of_the_benchmark(tmp_path: Path) -> None:
    own = write(tmp_path / "own.jsonl", [problem("Own/a")])
    artifact = tmp_path / "generate"
    workspace = Workspace(artifact)
    workspace.prepare()
    write(workspace.output / "samples.jsonl", [{"task_id": "Own/a", "solution": RIGHT}])
    publish(
        workspace, artifact, stage="generate", stage_version=1, key="0", parents={"benchmark": "0" * 64}, config={},
        metrics={}, provenance={}, seconds=0)
    with pytest.raises(DataError, match="answer another benchmark"):
        run_stage(EvaluateStage(output=tmp_path / "out", samples=artifact, benchmark=str(own)))
    with pytest.raises(XftError):
        run_stage(EvaluateStage(output=tmp_path / "out", samples=tmp_path / "none", benchmark=str(own)))


def test_pass_at_k_is_the_share_of_draws_with_a_pass() -> None:
    for passed in range(5):
        for k in range(1, 5):
            draws = list(itertools.combinations([True] * passed + [False] * (4 - passed), k))
            assert pass_at_k(4, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_the_interval_is_the_one_that_reports_have_also_where_nothing_is_solved() -> None:
    failed = [Verdict("pass", "fail")]
    metrics = scores([failed] * 10, [1])
    assert metrics.plus_interval_low == 0 and metrics.plus_interval_high == pytest.approx(0.2775, abs=1e-4)  # Wilson's interval


def test_killing_the_runner_leaves_no_process(tmp_path: Path) -> None:
    runners = []
    modes = {"unsafe": 2} if NO_SANDBOX else {"unsafe": 2, "bubblewrap": 6}  # least processes of a judge and a sample
    for mode in modes:
        config = tmp_path / f"{mode}.json"
        config.write_text(json.dumps({
            "output": str(tmp_path / mode), "benchmark": str(write(tmp_path / "own.jsonl", [problem("Own/a")])),
            "samples": str(write(tmp_path / "in.jsonl", [
                {"task_id": "Own/a", "solution": "import time\ntime.sleep(60)"}])),
            "evaluate": {"sandbox": mode, "min_time_limit": 30}}))
        runners.append(subprocess.Popen(
            [sys.executable, "-m", "xft_core", "evaluate", str(config)], stderr=subprocess.DEVNULL))
    processes = []
    for runner, enough in zip(runners, modes.values(), strict=True):
        deadline = time.monotonic() + 60
        found: list[int] = []  # replaced at every look, because the processes that test the sandbox come and go
        while len(found) < enough and time.monotonic() < deadline and runner.poll() is None:
            time.sleep(0.2)
            found = _descendants(runner.pid)
        assert runner.poll() is None and len(found) >= enough, "it should be grading by now"
        processes += found
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
    deadline = time.monotonic() + 5
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in processes if _is_alive(pid)] == []


def _descendants(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
