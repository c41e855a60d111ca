"""A user-defined task in a separate folder: from its files to prompts, verdicts and keys, without any code in this package."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories import dense_model
from xft_core.benchmarks.find import find_benchmark
from xft_core.benchmarks.registry import kind_of
from xft_core.errors import DataError, SandboxError
from xft_core.models.loading import load_tokenizer
from xft_core.recipe.sections import EvaluateConfig, GenerateConfig
from xft_core.stages.configs import EvaluateStage, GenerateStage
from xft_core.stages.run import run_stage, stage_key
from xft_core.store.results.evaluate import EvaluationFile

TASK = """
summary: Words, written backwards.
grader: grader.py
splits: {test: words.jsonl}
prompt: "Write {word} backwards."
completion_prompt: "{word} backwards is"
completion_stops: ["."]
response: "{reversed}"
hidden: [secret]
group_by: [length]
seconds: 2
"""
# Here the model's answer is a Python expression, so that a test can be hostile.
GRADER = """
def execute(problem, answer):
    print("a grader may print")
    return eval(answer, {"problem": problem}) if "(" in answer else answer

def judge(problem, output):
    return {"base": output == problem["reversed"], "score": float(output == problem["reversed"])}
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    folder = tmp_path / "backwards"
    folder.mkdir()
    (folder / "task.yaml").write_text(TASK)
    (folder / "grader.py").write_text(GRADER)
    (folder / "words.jsonl").write_text("".join(json.dumps({
        "task_id": f"word/{word}", "word": word, "reversed": word[::-1], "length": len(word), "secret": f"not-{word}"}) + "\n"
        for word in ("tea", "rice")))
    return folder


def grade(folder: Path, answers: dict[str, list[str]], tmp_path: Path) -> EvaluationFile:
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(
        json.dumps({"task_id": f"word/{word}", "solution": answer}) + "\n" for word in answers for answer in answers[word]))
    run_stage(EvaluateStage(
        output=tmp_path / "verdicts", samples=samples, benchmark=str(folder), evaluate=EvaluateConfig(workers=2)))
    found = EvaluationFile.read(tmp_path / "verdicts")
    assert found is not None
    return found


def test_a_folder_is_asked_and_graded(task: Path, tmp_path: Path) -> None:
    model, answers = dense_model(tmp_path / "model"), tmp_path / "answers"
    run_stage(GenerateStage(
        output=answers, model=str(model), benchmark=str(task), prompt_style="completion",
        generate=GenerateConfig(max_new_tokens=4, precision="fp32")))
    metrics = run_stage(EvaluateStage(
        output=tmp_path / "verdicts", samples=answers, benchmark=str(task), evaluate=EvaluateConfig())).manifest.metrics
    assert metrics["problems"] == 2 and metrics["base_pass_at_1"] == 0 == metrics["mean_score"]  # the model is random
    assert {"pass_at_1/3", "pass_at_1/4"} <= metrics.keys()


def test_what_a_model_wrote_sees_no_answer_and_forges_no_verdict(task: Path, tmp_path: Path) -> None:
    found = grade(task, {"tea": [
        "aet", "tea", "(problem['word'])[::-1]", "problem.get('reversed', 'not there')", "str(sorted(problem))",
        "__import__('os')._exit(0)", "__import__('os').write(1, b'{\"base\": true}')",
        "[__import__('os').write(fd, b'{\"output\": \"x\"}\\n') for fd in range(3, 20) if not __import__('os').close(0)]",
        "''.join(open(__import__('glob').glob('/**/words.jsonl', recursive=True)[0]))", "[i for i in iter(int, 1)]",
        "__import__('os').environ['HOME']"], "rice": ["ecir"]}, tmp_path)
    statuses = [sample.plus for sample in found.problems[0].samples]
    assert statuses[:3] == ["pass", "fail", "pass"]  # the third one computes the answer, which is not a forgery
    assert set(statuses[3:]) <= {"fail", "timeout"} and statuses[9] == "timeout"
    assert found.problems[1].samples[0].plus == "pass" and found.problems[1].samples[0].score == 1


def test_prompts_of_all_styles_and_what_is_taken_of_an_answer(task: Path, tmp_path: Path) -> None:
    kind, tokenizer = kind_of(task), load_tokenizer(dense_model(tmp_path / "model"))
    problem = kind.load_problems(task)[0]
    assert kind.build_prompt(problem, "completion", tokenizer).text == "tea backwards is"
    assert "Write tea backwards.\n\n@@ Response\n" in kind.build_prompt(problem, "magicoder", tokenizer).text
    assert kind.solution(problem, " aet. And", "completion") == "aet"
    assert kind.solution(problem, "It is\n```text\naet\n```\nas you see", "chat") == "aet"
    assert kind.texts(problem) == ("Write tea backwards.", "aet")


def test_a_key_follows_from_all_files(task: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"task_id": "word/tea", "solution": "aet"}\n')

    def key() -> str:
        return stage_key(EvaluateStage(output=tmp_path / "v", samples=samples, benchmark=str(task), evaluate=EvaluateConfig()))

    keys = {key()}
    for name in ("task.yaml", "grader.py", "words.jsonl"):
        with (task / name).open("a") as stream:
            stream.write("\n")
        keys.add(key())
    assert len(keys) == 4


def test_a_table_of_questions_and_answers_needs_no_code(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(
        'summary: Capitals.\ngrader: exact\nsplits: {test: test.csv}\nprompt: "{question}"\n'
        'completion_prompt: "{question}\\n"\nresponse: "{answer}"\n')
    (tmp_path / "test.csv").write_text('question,answer\n"Of France, please?",Paris\nOf Norway?,Oslo\n')
    kind = kind_of(tmp_path)
    problems = kind.load_problems(tmp_path)
    assert [problem.task_id for problem in problems] == ["test/2", "test/3"]
    verdicts = kind.open_grader(EvaluateConfig(), tmp_path).grade(problems[1], ["oslo ", "Paris"])
    assert [verdict.plus for verdict in verdicts] == ["pass", "fail"]
    (tmp_path / "test.csv").write_text("question,answer\nOf France, please?,Paris\n")
    with pytest.raises(DataError, match="line 2: 3 fields"):
        kind.load_problems(tmp_path)


def spoil(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    return change


@pytest.mark.parametrize("change, named", [
    (spoil("task.yaml", "grader.py", "nothing.py"), "not a shipped grader"),
    (spoil("task.yaml", "words.jsonl", "../words.jsonl"), "splits"),
    (spoil("task.yaml", "words.jsonl", "absent.jsonl"), "absent.jsonl"),
    (spoil("task.yaml", "test:", "train:"), "no split 'test'"),
    (spoil("task.yaml", "seconds: 2", "second: 2"), "second"),
    (spoil("task.yaml", "{word} backwards.", "{words} backwards."), "'words' is missing"),
    (spoil("task.yaml", "summary", "- summary"), "task.yaml"),
    (spoil("words.jsonl", '"word/tea"', "3"), "task_id"),
    (spoil("grader.py", "def judge", "def jud ge"), "not valid Python"),
    (lambda folder: (folder / "task.yaml").unlink(), "without task.yaml")])
def test_mistakes_are_named(task: Path, change: Callable[[Path], None], named: str) -> None:
    change(task)
    with pytest.raises(DataError, match=named):
        find_benchmark(str(task))
        kind = kind_of(task)
        kind.load_problems(task)
        kind.open_grader(EvaluateConfig(), task)


@pytest.mark.parametrize("old, new", [
    ('problem["reversed"], ', 'problem["word"], '), ('output == problem["reversed"], ', "True, ")])
def test_a_grader_that_does_not_tell_right_from_wrong_is_refused(task: Path, old: str, new: str) -> None:
    spoil("grader.py", old, new)(task)
    with pytest.raises(SandboxError, match="answer to its first problem"):
        kind_of(task).open_grader(EvaluateConfig(), task)
