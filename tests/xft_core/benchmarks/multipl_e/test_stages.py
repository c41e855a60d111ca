"""MultiPL-E through the stages: generated with the demo model, graded, and skipped without a toolchain."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.xft_core.stages.test_evaluate import NO_SANDBOX, needs_sandbox
from xft_core.benchmarks.find import find_benchmark
from xft_core.benchmarks.multipl_e.benchmark import MultiPLE
from xft_core.benchmarks.registry import kind_of
from xft_core.errors import DataError, SandboxError
from xft_core.recipe.sections import EvaluateConfig
from xft_core.stages.configs import EvaluateStage
from xft_core.stages.run import run_stage, stage_key


def row(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "language": "sh", "prompt": f"#!/bin/bash\n# Twice the number.\n#\n# $1 is an integer\n{name}() {{\n",
        "tests": f'}}\n\ncandidate() {{\n    {name} "$@"\n}}\n\nset -e\nrun_test() {{\n    [[ $(candidate "4") = "8" ]]\n}}\n\n'
                 "run_test\n",
        "stop_tokens": ["\n}"]} | changes


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    path = tmp_path / "multipl-e" / "humaneval-sh.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row(name)) + "\n" for name in ("twice", "double", "two_times")))
    return path


def samples(tmp_path: Path, benchmark: Path) -> Path:
    bodies = {"twice": ["    echo $(($1 * 2))"], "double": ["    echo $(($1 + 2))", "    echo $(($1 + $1))"],
              "two_times": ["    if"]}
    path = tmp_path / "samples.jsonl"
    kind = MultiPLE()
    path.write_text("".join(
        json.dumps({"task_id": problem.task_id, "solution": kind.solution(problem, body, "completion")}) + "\n"
        for problem in kind.load_problems(benchmark) for body in bodies[problem.task_id]))
    return path


@needs_sandbox
def test_a_model_is_asked_and_graded_by_command(tmp_path: Path, benchmark: Path) -> None:
    for stage, fields in (
        ("generate", {"model": "demo:model", "max_problems": 2, "prompt_style": "magicoder",
                      "generate": {"max_new_tokens": 24, "precision": "fp32"}}),
        ("evaluate", {"samples": str(tmp_path / "generate"), "evaluate": {"workers": 2}}),
    ):
        config = tmp_path / f"{stage}.json"
        config.write_text(json.dumps({"output": str(tmp_path / stage), "benchmark": str(benchmark)} | fields))
        done = subprocess.run([sys.executable, "-m", "xft_core", stage, str(config)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in (tmp_path / "generate/samples.jsonl").read_text().splitlines()]
    assert [sample["task_id"] for sample in written] == ["twice", "double"]
    assert all("```bash\n#!/bin/bash" in sample["prompt"] for sample in written)
    assert all(sample["solution"].endswith("run_test\n") for sample in written)
    results = json.loads((tmp_path / "evaluate/results.json").read_text())
    assert results["benchmark"]["kind"] == "MultiPL-E" and results["benchmark"]["language"] == "sh"
    assert "bash" in results["toolchain"] and results["benchmark"]["extended_tests"] is False
    assert [problem["task_id"] for problem in results["problems"]] == ["twice", "double"]
    assert {sample["base"] for problem in results["problems"] for sample in problem["samples"]} <= {"pass", "fail", "timeout"}


@needs_sandbox
def test_verdicts_and_pass_at_k(tmp_path: Path, benchmark: Path) -> None:
    stage = EvaluateStage(
        output=tmp_path / "out", benchmark=str(benchmark), samples=samples(tmp_path, benchmark),
        evaluate=EvaluateConfig(workers=2))
    metrics = run_stage(stage).manifest.metrics
    assert metrics["base_pass_at_1"] == metrics["plus_pass_at_1"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert metrics["infrastructure_errors"] == 0 and "skipped" not in metrics
    problems = json.loads((tmp_path / "out/results.json").read_text())["problems"]
    found = {problem["task_id"]: [(sample["base"], sample["plus"]) for sample in problem["samples"]] for problem in problems}
    right, wrong = ("pass", "pass"), ("fail", "fail")
    assert found == {"twice": [right], "double": [wrong, right], "two_times": [wrong]}
    assert "syntax error" in problems[2]["samples"][0]["detail"]


def test_no_toolchain_is_no_zero_and_is_graded_once_there_is_one(
    tmp_path: Path, benchmark: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stage(output: str) -> EvaluateStage:
        return EvaluateStage(
            output=tmp_path / output, benchmark=str(benchmark), samples=samples(tmp_path, benchmark),
            evaluate=EvaluateConfig(sandbox="bubblewrap" if not NO_SANDBOX else "unsafe"))

    with_toolchain = stage_key(stage("graded"))
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        assert stage_key(stage("skipped")) != with_toolchain
        metrics = run_stage(stage("skipped")).manifest.metrics
        assert run_stage(stage("skipped")).reused
    assert metrics.pop("seconds") >= 0
    assert metrics == {"skipped": 1, "problems": 3, "samples": 4}
    results = json.loads((tmp_path / "skipped/results.json").read_text())
    assert results["skipped"] == "no toolchain for sh: no bash (install: Debian packages bash)"
    assert results["problems"] == [] and results["benchmark"]["language"] == "sh"
    assert len((tmp_path / "skipped/samples_evalplus.jsonl").read_text().splitlines()) == 4
    assert run_stage(stage("graded")).manifest.metrics["base_pass_at_1"] == pytest.approx(1 / 2)


def test_a_toolchain_that_is_not_whole_is_named(
    tmp_path: Path, benchmark: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A toolchain that fails its probe counts as missing. One that calls a right program wrong is an error, never a score."""
    tools = tmp_path / "tools"
    tools.mkdir()
    bash = tools / "bash"
    stage = EvaluateStage(
        output=tmp_path / "out", benchmark=str(benchmark), samples=samples(tmp_path, benchmark),
        evaluate=EvaluateConfig(sandbox="unsafe"))
    monkeypatch.setenv("PATH", str(tools))
    bash.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    bash.chmod(0o755)
    assert stage.settings()["versions"] == {"toolchain": None}
    bash.write_text("#!/bin/sh\necho bash 99\n")
    assert stage.settings()["versions"] == {"toolchain": "bash 99"}
    with pytest.raises(SandboxError, match=r"Grading sh does not work .* a right program got 'fail' \(bash 99"):
        run_stage(stage)
    assert not (tmp_path / "out").exists()


FAKE_GO = """#!/bin/sh
if [ "$1" = version ]; then echo go 99; exit; fi
echo $$ $GOCACHE > {said}.part && mv {said}.part {said}
exec sleep 60
"""


def test_what_a_killed_grading_left_is_swept_by_the_next(tmp_path: Path) -> None:
    benchmark, said, tools = tmp_path / "multipl-e" / "humaneval-go.jsonl", tmp_path / "said", tmp_path / "tools"
    for directory in (benchmark.parent, tools, tmp_path / "tmp"):
        directory.mkdir()
    benchmark.write_text(json.dumps(row("twice", language="go_test.go")) + "\n")
    (tmp_path / "samples.jsonl").write_text(json.dumps({"task_id": "twice", "solution": "x"}) + "\n")
    (tools / "go").write_text(FAKE_GO.format(said=said))
    (tools / "go").chmod(0o755)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({
        "benchmark": str(benchmark), "samples": str(tmp_path / "samples.jsonl"), "output": str(tmp_path / "out"),
        "evaluate": {"sandbox": "unsafe"}}))
    command = [sys.executable, "-m", "xft_core", "evaluate", str(config)]
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PATH": f"{tools}:/usr/bin:/bin"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not said.exists() and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    compiler, cache = said.read_text().split()
    os.kill(int(compiler), signal.SIGKILL)
    left = [Path(cache), *(tmp_path / "tmp").glob("xft-work-*")]
    assert len(left) == 2 and left[1].exists()
    without = environment | {"PATH": "/usr/bin:/bin"}  # without a toolchain, nothing can be graded
    subprocess.run(command, env=without, check=True, capture_output=True)
    assert not any(path.exists() for path in left)


def test_names_and_the_directory_they_are_looked_for_in(
    tmp_path: Path, benchmark: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XFT_BENCHMARKS", str(tmp_path))
    assert find_benchmark("multipl-e/sh") == benchmark
    packed = benchmark.with_name("humaneval-js.jsonl.gz")
    packed.write_bytes(b"")
    assert find_benchmark("multipl-e/js") == packed
    with pytest.raises(DataError, match=r"there is no file .*humaneval-go\.jsonl"):
        find_benchmark("multipl-e/go")
    monkeypatch.delenv("XFT_BENCHMARKS")
    with pytest.raises(DataError, match="XFT_BENCHMARKS, but that variable is not set"):
        find_benchmark("multipl-e/sh")


@pytest.mark.parametrize(("changes", "reason"), [
    ({"language": "cobol"}, "line 1: language is 'cobol', which is unknown. Known: js, ts"),
    ({"tests": ""}, "line 1: tests is \"\"; it must be a non-empty text"),
    ({"stop_tokens": "\n}"}, "line 1: stop_tokens is .*; it must be a list of non-empty texts"),
    ({"stop_tokens": [""]}, "line 1: stop_tokens is .*; it must be a list of non-empty texts"),
    ({"prompt": 3}, "line 1: prompt is 3; it must be a non-empty text"),
])
def test_problems_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row("twice", **changes)) + "\n")
    assert kind_of(path).name == "MultiPL-E"
    with pytest.raises(DataError, match=reason):
        kind_of(path).load_problems(path)
