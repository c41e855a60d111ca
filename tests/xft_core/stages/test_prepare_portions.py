"""The output of prepare depends neither on the borders of portions nor on the number of processes that read and tokenize."""

import json
import multiprocessing
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.factories import dense_model
from xft_core.benchmarks.decontaminate import Contamination
from xft_core.benchmarks.find import find_benchmark
from xft_core.data import portions, reading, tokenising
from xft_core.data.rows import Row, save_rows
from xft_core.data.tokenize import tokenise
from xft_core.errors import DataError
from xft_core.models.loading import load_tokenizer
from xft_core.recipe.sections import DataConfig
from xft_core.stages.configs import NllStage, PrepareStage
from xft_core.stages.nll import read_rows
from xft_core.stages.run import run_stage

PROCESSES = (1, 2, 3)
BENCHMARK = "demo:benchmark.jsonl"
PROBLEM = json.loads(find_benchmark(BENCHMARK).read_text().splitlines()[0])
WORDS = ["add", "ß", "漢字", "<s>", "</s>", "\u2028", "\x85", "return x", "\\",
         '"', "\t", "<|user|>", "x" * 40, "🙂", " ", "\n\n"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
            (portions, "PORTION", 2000), (portions, "PORTION_ROWS", 9), (tokenising, "BATCH", 5),
            (reading, "BATCH", 5)):
        monkeypatch.setattr(module, name, value)


def some_rows(rng: random.Random) -> list[dict[str, str]]:
    def text(longest: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(0, longest)))

    rows: list[dict[str, str]] = []
    for _ in range(60):
        rows.append({"instruction": "a" + text(6), "response": text(9)})
        kind = rng.random()
        if kind < 0.2:
            rows.append(rng.choice(rows))
        elif kind < 0.3:
            rows.append({"instruction": PROBLEM["prompt"] + text(3), "response": PROBLEM["canonical_solution"]})
        elif kind < 0.35:
            rows.append({"instruction": "long" * 200, "response": "no room"})
        elif kind < 0.4:
            rows.append({"instruction": "long", "response": text(9) + "cut off" * 200})
    return rows


def write(rng: random.Random, path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5), encoding="utf-8")
    else:
        end = rng.choice(["\n", "\r\n", "\r"])
        lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5) + end * rng.choice([1, 1, 1, 2]) for row in rows]
        path.write_bytes(("\ufeff" * rng.randint(0, 1) + end * 3 + "".join(lines).rstrip("\r\n")).encode())
    return path


def reference(rows: list[dict[str, str]], data: DataConfig, model: Path, output: Path) -> dict[str, int]:
    """Run the stage with everything in lists; write the splits and decontamination.json."""
    answered = [row for row in rows if row["response"].strip()]
    first = list({json.dumps(row): row for row in answered}.values())
    find, clean, dropped = Contamination([find_benchmark(BENCHMARK)]).find, [], []
    for row in first:
        texts = [row["instruction"], row["response"]]
        found = find(texts)
        if found:
            dropped.append(asdict(found) | {"row": texts})
        else:
            clean.append(row)
    random.Random(data.split_seed).shuffle(clean)
    tokenizer = load_tokenizer(model)
    made: list[tuple[Row, list[dict[str, str]]]] = []
    for row in clean[:data.max_rows]:
        messages = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["response"]}]
        tokens, _ = tokenise(messages, data, tokenizer)
        if tokens:
            made.append((tokens, messages))
    held_out = max(1, min(data.held_out_rows, len(made) // 5))
    output.mkdir()
    for name, part in (("held_out", made[:held_out]), ("train", made[held_out:])):
        save_rows(output / f"{name}.safetensors", [tokens for tokens, _ in part])
        (output / f"{name}.jsonl").write_text(
            "".join(json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for _, messages in part), encoding="utf-8")
    (output / "decontamination.json").write_text(json.dumps(
        {"benchmarks": ["benchmark.jsonl"], "rows_checked": len(first), "dropped": dropped}, indent=1, ensure_ascii=False),
        encoding="utf-8")
    return {
        "rows_read": len(rows), "dropped_empty_response": len(rows) - len(answered), "train_rows": len(made) - held_out,
        "dropped_duplicate": len(answered) - len(first), "dropped_contaminated": len(dropped), "held_out_rows": held_out,
        "dropped_no_room": len(clean[:data.max_rows]) - len(made), "not_used": len(clean) - len(clean[:data.max_rows])}


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_prepare_leaves_what_plain_lists_give(
        seed: int, tmp_path: Path, model: Path, small_portions: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    rows = some_rows(rng)
    path = write(rng, tmp_path / f"d{['.jsonl', '.json', '.parquet'][seed % 3]}", rows)
    data = DataConfig(
        path=str(path), max_length=200, held_out_rows=9, template="chat" if seed % 2 else "magicoder", split_seed=seed,
        max_rows=rng.choice([None, 20, 10_000]))
    expected = reference(rows, data, model, tmp_path / "expected")
    assert expected["dropped_contaminated"] and expected["dropped_duplicate"] and expected["train_rows"] > 10
    seen = set()
    for processes in PROCESSES:
        monkeypatch.setenv("OMP_NUM_THREADS", str(processes))
        output = tmp_path / f"out{processes}"
        manifest = run_stage(PrepareStage(output=output, model=str(model), data=data, benchmarks=[BENCHMARK])).manifest
        for file in (tmp_path / "expected").iterdir():
            assert (output / file.name).read_bytes() == file.read_bytes(), (processes, file.name)
        assert expected.items() <= manifest.metrics.items()
        seen.add((manifest.digest, json.dumps(manifest.metrics)))
    assert len(seen) == 1 and not multiprocessing.active_children()


@pytest.mark.parametrize("max_rows", [None, 7, 1000])
def test_nll_takes_the_rows_of_plain_lists(
        max_rows: int | None, tmp_path: Path, model: Path, small_portions: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tokenizer = some_rows(random.Random(3)), load_tokenizer(model)
    data = DataConfig(path=str(write(random.Random(3), tmp_path / "d.jsonl", rows)), max_length=200, max_rows=max_rows)
    chosen = list(rows)
    if max_rows is not None:
        random.Random(data.split_seed).shuffle(chosen)
    expected = []
    for row in chosen[:max_rows]:
        messages = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["response"]}]
        if row["response"].strip() and (made := tokenise(messages, data, tokenizer)[0]):
            expected.append((made.input_ids, made.prompt_length))
    for processes in PROCESSES:
        monkeypatch.setenv("OMP_NUM_THREADS", str(processes))
        (tmp_path / str(processes)).mkdir()
        config = NllStage(output=tmp_path / "out", model=str(model), data=data)
        found, _, dropped = read_rows(config, tokenizer, tmp_path / str(processes))
        assert [(found[index][0].tolist(), found[index][1]) for index in range(len(found))] == expected
        assert dropped == len(chosen[:max_rows]) - len(expected)


@pytest.mark.parametrize(("suffix", "message"), [(".jsonl", "line 34: field 'response' is null"), (".json", "row 34: field")])
@pytest.mark.parametrize("processes", PROCESSES)
def test_the_first_mistake_is_told_with_its_place(
        processes: int, suffix: str, message: str, tmp_path: Path, model: Path, small_portions: None,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(processes))
    rows: list[Any] = [{"instruction": f"{number}", "response": "x"} for number in range(90)]
    rows[33] = {"instruction": "a", "response": None}
    rows[40] = 5
    separator, text = ("\n", "") if suffix == ".jsonl" else (",\n", "[")
    path = tmp_path / f"d{suffix}"
    path.write_text(text + separator.join(map(json.dumps, rows)) + separator + "{{")  # invalid JSON at its end
    with pytest.raises(DataError, match=message):
        run_stage(PrepareStage(output=tmp_path / "out", model=str(model), data=DataConfig(path=str(path))))
    rows[33] = rows[40] = rows[0]
    path.write_text(text + separator.join(map(json.dumps, rows)) + separator + "{{")
    with pytest.raises(DataError, match="line 91: not JSON"):
        run_stage(PrepareStage(output=tmp_path / "out", model=str(model), data=DataConfig(path=str(path))))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("bad", [3, 50])  # few enough to list all, and so many that most are only counted
def test_dropped_rows_are_counted_and_told_with_their_places(
        bad: int, tmp_path: Path, model: Path, small_portions: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Any] = [{"instruction": f"{number}", "response": f"x{number}"} for number in range(200)]
    places = sorted(random.Random(bad).sample(range(1, 200), bad))
    for place in places:
        rows[place] = {"instruction": "a", "response": None}
    for name, part in (("a", rows[:80]), ("b", rows[80:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    told = [f"a.jsonl', line {place + 1}: " if place < 80 else f"b.jsonl', line {place - 79}: " for place in places][:20]
    seen = set()
    for processes in PROCESSES:
        monkeypatch.setenv("OMP_NUM_THREADS", str(processes))
        output = tmp_path / f"out{processes}"
        manifest = run_stage(PrepareStage(
            output=output, model=str(model), data=DataConfig(path=str(tmp_path / "*.jsonl"), unusable_rows="drop"))).manifest
        assert manifest.metrics["dropped_unusable"] == bad
        examples = json.loads((output / "refused.json").read_text())["rows"]
        assert len(examples) == len(told) and all(map(lambda example, place: place in example, examples, told))
        seen.add(manifest.digest)
    assert len(seen) == 1


def test_a_row_that_cannot_be_tokenised_counts_only_when_used(
        tmp_path: Path, model: Path, small_portions: None) -> None:
    turns = [{"role": role, "content": f"{index}"} for index, role in enumerate(["user", "assistant"] * 2)]
    rows = [{"messages": turns}] + [{"messages": [*turns[:1], turns[1] | {"content": f"b{n}"}]} for n in range(40)]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="the row that begins '0': a conversation of 4 messages does not fit"):
        run_stage(PrepareStage(output=tmp_path / "out", model=str(model), data=DataConfig(path=str(path))))
    used = DataConfig(path=str(path), max_rows=30, split_seed=3)
    order = list(range(41))
    random.Random(3).shuffle(order)
    assert 0 not in order[:30]
    assert run_stage(PrepareStage(output=tmp_path / "o", model=str(model), data=used)).manifest.metrics["train_rows"] == 24
