"""Instruction data, benchmarks, and what the stages after training write from them."""

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

from tests.fuzz.target import target
from tests.fuzz.targets.models import made_once
from tests.fuzz.values import changed, json_text, spoiled

ROWS = [
    {"instruction": "Add", "response": "x"}, {"instruction": "Add", "input": "1", "output": "x"},
    {"problem": "Add", "solution": "x"},
    {"messages": [{"role": "user", "content": "Add"}, {"role": "assistant", "content": "x"}]}]


@target
def data_rows(rng: random.Random, directory: Path) -> None:
    """Read instruction data in every form, as lines, as a list, and as Parquet, down to the tokens."""
    from xft_core.data.reading import read_conversations
    from xft_core.data.templates import training_text
    from xft_core.data.text_tokens import prompt_token_ids
    from xft_core.models.loading import load_tokenizer
    from xft_core.recipe.sections import DataConfig

    row = rng.choice(ROWS)
    kind = rng.choice([".jsonl", ".json", ".parquet"])
    path = directory / f"data{kind}"
    if kind == ".parquet":
        import pyarrow
        from pyarrow import parquet

        buffer = io.BytesIO()
        try:
            parquet.write_table(pyarrow.Table.from_pylist([row, changed(rng, row)]), buffer)
        except (pyarrow.ArrowException, TypeError, ValueError, AttributeError, OverflowError):
            return
        path.write_bytes(spoiled(rng, buffer.getvalue()) if rng.random() < 0.7 else buffer.getvalue())
    elif kind == ".json":
        path.write_bytes(json_text(rng, [row, row, changed(rng, row)]))
    else:
        path.write_bytes(json_text(rng, row) + b"\n" + json.dumps(row).encode() + b"\n")
    if not _TOKENIZER:
        _TOKENIZER["tiny"] = load_tokenizer(made_once()[1] / "dense")
    tokenizer = _TOKENIZER["tiny"]
    config = DataConfig(path=str(path), template=rng.choice(["magicoder", "chat"]))
    for messages in read_conversations(config, path):
        prompt_token_ids(training_text(messages, config.template, tokenizer)[0], tokenizer)


_TOKENIZER: dict[str, Any] = {}

BENCHMARKS = [
    {"task_id": "T/1", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x\n", "base_input": [[1]],
     "plus_input": [[2]], "atol": 0},
    {"name": "H_1_f", "language": "js", "prompt": "function f(x){\n", "tests": "}\nassert(f(1))", "stop_tokens": ["\n}"]},
    {"prompt": "Q", "reference_code": "x = 1", "code_context": "def test_execution(code): pass",
     "metadata": {"problem_id": 1, "library": "Numpy", "perturbation_type": "Origin"}}]


@target
def benchmark(rng: random.Random, directory: Path) -> None:
    """Read a benchmark file of every kind: its problems, its prompts, and its use in decontamination."""
    from xft_core.benchmarks.decontaminate import Contamination
    from xft_core.benchmarks.registry import kind_of

    row = rng.choice(BENCHMARKS)
    content = json_text(rng, row) + b"\n" + (json.dumps(row).encode() + b"\n" if rng.random() < 0.5 else b"")
    path = directory / rng.choice(["b.jsonl", "b.jsonl.gz"])
    if path.suffix == ".gz":
        content = gzip.compress(content)
        content = spoiled(rng, content) if rng.random() < 0.5 else content
    path.write_bytes(content)
    kind = kind_of(path)
    problems = kind.load_problems(path)
    for problem in problems:
        json.dumps({"task_id": problem.task_id}, ensure_ascii=False).encode()
        kind.solution(problem, "    return x\n```\n", "completion")
    Contamination([path]).find_in([["def f(x):\n    return x"]])


@target
def samples(rng: random.Random, directory: Path) -> None:
    """Read samples.jsonl of a model's answers."""
    from xft_core.benchmarks.registry import kind_of
    from xft_core.stages.evaluate import read_samples

    path = directory / "bench.jsonl"
    path.write_text(json.dumps(BENCHMARKS[0]) + "\n")
    sample = {"task_id": "T/1", "sample_index": 0, "solution": "x"}
    (directory / "samples.jsonl").write_bytes(json_text(rng, sample) + b"\n")
    read_samples(directory / "samples.jsonl", kind_of(path), path, "0")


@target
def results(rng: random.Random, directory: Path) -> None:
    """Read results.json of an evaluation, compare it with another, and show it as a page."""
    from xft_core.reporting.diff import diff

    sample = {"base": "pass", "plus": "fail", "detail": "", "solution": "x"}
    content = {"benchmark": {"file": "b", "sha256": "0", "extended_tests": True, "kind": "EvalPlus"}, "sandbox": "x",
               "limits": {}, "problems": [{"task_id": "T/1", "samples": [sample]}, {"task_id": "T/2", "samples": [sample] * 2}]}
    for name in "ab":
        (directory / f"{name}.json").write_bytes(json_text(rng, content) if name == "a" else json.dumps(content).encode())
    diff(directory / "a.json", directory / "b.json", directory / "page.html")


@target
def coefficients(rng: random.Random, directory: Path) -> None:
    """Read coefficients.json of mix, and merge with it."""
    from xft_core.mixing.coefficients import load_coefficients

    layers = [{"weights": [0.75, 0.25], "movement": 0.0}] * 2
    content = {"method": "learned", "shared_expert": True, "layers": layers}
    (directory / "coefficients.json").write_bytes(json_text(rng, content))
    load_coefficients(directory)


@target
def report_files(rng: random.Random, directory: Path) -> None:
    """Read comparison.json of a run's report, and use it in a comparison of variants."""
    from tests.xft_core.stages.test_compare import write_report
    from xft_core.recipe.grid import expand, field_labels, parse_grid
    from xft_core.recipe.sections import Recipe
    from xft_core.reporting.variants.markdown import variants_markdown
    from xft_core.reporting.variants.summary import put_together
    from xft_core.stages.compare import headline

    grid = ["seed=[0,1]"]
    variants = expand(Recipe(), grid)
    reports = {variant.name: write_report(directory / variant.name, variant, 20, 0.5) for variant in variants}
    path = reports[variants[0].name] / "comparison.json"
    path.write_bytes(json_text(rng, json.loads(path.read_bytes())))
    result = put_together("demo", parse_grid(grid), variants, reports)
    variants_markdown(result, field_labels(grid), variants, {})
    headline(result)
