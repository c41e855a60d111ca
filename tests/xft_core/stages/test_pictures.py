"""Upcycling and merging the language model inside models that read pictures."""

import base64
import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.factories import PICTURE_CONFIGS, drawn, picture_batch, picture_model, picture_processor
from xft_core.benchmarks.picture_questions import PictureQuestions
from xft_core.data.packing import PackedRows
from xft_core.data.picture_rows import picture_bytes
from xft_core.data.rows import load_rows
from xft_core.data.templates import magicoder_prompt
from xft_core.errors import DataError
from xft_core.families import PICTURE_FAMILIES
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.recipe.sections import DataConfig, EvaluateConfig, GenerateConfig, MergeConfig, SftConfig, UpcycleConfig
from xft_core.stages.configs import (
    EvaluateStage,
    GenerateStage,
    MergeStage,
    MixStage,
    PrepareStage,
    SftStage,
    UpcycleStage,
)
from xft_core.stages.merge import merge
from xft_core.stages.run import run_stage
from xft_core.stages.upcycle import upcycle
from xft_core.training.response_loss import response_loss


@pytest.fixture(scope="module", params=PICTURE_CONFIGS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    directory = tmp_path_factory.mktemp(request.param)
    source, moe = picture_model(directory / "dense", request.param), directory / "moe"
    moe.mkdir()
    upcycle(source, moe, UpcycleConfig(num_experts=4, num_experts_per_tok=3), seed=0)
    return request.param, source, moe


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def test_every_family_that_reads_pictures_is_tested() -> None:
    assert set(PICTURE_CONFIGS) == set(PICTURE_FAMILIES)


@torch.no_grad()
def test_upcycling_changes_no_logit_with_pictures(made: tuple[str, Path, Path]) -> None:
    family, source, moe = made
    batch = picture_batch(family)
    stock = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float64).eval()
    upcycled = load_model(moe, torch.float64)
    assert len(moe_blocks(upcycled)) == 2
    wide = {name: item.double() if item.is_floating_point() else item for name, item in batch.items()}
    expected, found = (model(**wide, use_cache=False).logits for model in (stock, upcycled))
    assert float((expected - found).abs().max()) < 1e-6 * float(expected.abs().max())  # routing weights are in fp32
    other = wide | {"pixel_values": wide["pixel_values"].flip(0)}
    assert not torch.allclose(stock(**other, use_cache=False).logits, expected)  # the picture matters


def test_a_merge_of_equal_experts_is_the_source_in_names_and_bits(made: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, source, moe = made
    merge(moe, tmp_path, torch.full((2, 4), 0.25, dtype=torch.float64))
    expected, found = tensors(source), tensors(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    _, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]


def test_only_ffns_of_the_language_model_become_mixtures(made: tuple[str, Path, Path]) -> None:
    family, source, moe = made
    dense, upcycled = load_model(source, torch.float32).state_dict(), load_model(moe, torch.float32).state_dict()
    new = {name for name in upcycled if name not in dense}
    assert new and all(name.startswith(f"{PICTURE_FAMILIES[family]}.layers.") and ".mlp." in name for name in new)
    assert all(torch.equal(dense[name], upcycled[name]) for name in dense if name in upcycled)


COLORS = ("red", "green", "blue", "white")


def picture_data(path: Path, rows: int = 40) -> Path:
    questions = ("Which colour is this?", "Name the colour.")
    lines = [{"image": drawn(color), "instruction": question, "response": f"{color} {number}"}
             for number in range(rows // 8) for color in COLORS for question in questions]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Create a llava model with its processor, and rows prepared for it."""
    directory = tmp_path_factory.mktemp("prepared")
    model = picture_model(directory / "dense", "llava")
    picture_processor(model)
    data = DataConfig(path=str(picture_data(directory / "rows.jsonl")), max_length=256, held_out_rows=4, reserved_rows=4)
    run_stage(PrepareStage(output=directory / "data", model=str(model), data=data))
    return model, directory / "data"


def test_rows_hold_what_the_processor_makes(prepared: tuple[Path, Path]) -> None:
    model, data = prepared
    rows, processor = load_rows(data, "train"), AutoProcessor.from_pretrained(model)
    texts = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    assert len(rows) == len(texts) == 40 - 4 - 4
    pictures = {hashlib.sha256(base64.b64decode(drawn(color).partition(",")[2])).hexdigest(): color for color in COLORS}
    for index in (0, 7):
        color = pictures[texts[index]["pictures"][0]]
        made = processor(text="<image>" + magicoder_prompt(texts[index]["question"]),
                         images=[Image.new("RGB", (24, 24), color)], return_tensors="pt")
        tokens, prompt_length = rows[index]
        assert tokens[:prompt_length].tolist() == made["input_ids"][0].tolist()
        assert processor.tokenizer.decode(tokens[prompt_length:]) == texts[index]["answer"] + "</s>"
        found = rows.pictures([index], len(tokens))
        assert found.keys() == {"pixel_values"} and torch.equal(found["pixel_values"], made["pixel_values"])


def test_a_padded_batch_has_the_losses_of_its_rows(prepared: tuple[Path, Path]) -> None:
    model, rows = load_model(prepared[0], torch.float64), load_rows(prepared[1], "train")
    packed = PackedRows(rows, max(rows.lengths()), packing=False)
    order = sorted(range(len(rows)), key=lambda index: rows.lengths()[index])
    chosen = [order[0], order[-1]]
    assert rows.lengths()[chosen[0]] < rows.lengths()[chosen[1]]
    alone = sum(float(response_loss(model, packed.collate([[index]]))) for index in chosen)
    together = float(response_loss(model, packed.collate([[index] for index in chosen])))
    assert together == pytest.approx(alone, rel=1e-9)


def test_language_models_of_pictures_are_tuned_mixed_and_merged(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = prepared
    sft = SftConfig(epochs=3, batch_size=8, micro_batch_size=4, learning_rate=3e-3, precision="fp32", warmup_steps=0)
    upcycling = UpcycleConfig(num_experts=4, num_experts_per_tok=3)
    run_stage(UpcycleStage(output=tmp_path / "moe", model=str(model), upcycle=upcycling))
    tuned = run_stage(SftStage(output=tmp_path / "sft", model=str(tmp_path / "moe"), data=data, sft=sft)).manifest.metrics
    assert tuned["held_out_nll"] < tuned["held_out_nll_before"] - 0.5
    mixing = MergeConfig(precision="fp32", micro_batch_size=4, batch_size=8, epochs=1)
    run_stage(MixStage(output=tmp_path / "mix", model=str(tmp_path / "sft"), data=data, merge=mixing))
    merged = run_stage(MergeStage(
        output=tmp_path / "merged", model=str(tmp_path / "sft"), coefficients=tmp_path / "mix", data=data)).manifest.metrics
    assert merged["held_out_nll"] < tuned["held_out_nll_before"] - 0.5
    before, after = tensors(model), tensors(tmp_path / "merged")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("language_model.") for name in changed)  # not the vision tower
    stock, processor = (kind.from_pretrained(tmp_path / "merged") for kind in (AutoModelForImageTextToText, AutoProcessor))
    assert stock.config.model_type == "llava" and processor.image_token == "<image>"


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(PICTURE_CONFIGS) - {"llava"}))
def test_rows_go_through_the_processor_of_every_family(family: str, tmp_path: Path) -> None:
    model = picture_model(tmp_path / "dense", family)
    picture_processor(model, family)
    for template in ("magicoder", "chat"):
        run_stage(PrepareStage(output=tmp_path / template, model=str(model), data=DataConfig(
            path=str(picture_data(tmp_path / "rows.jsonl")), template=template, max_length=400, held_out_rows=4)))
        rows = load_rows(tmp_path / template, "train")
        assert len(rows) == 36 and "pixel_values" in rows.pictures([0], rows.lengths()[0])
    data = tmp_path / "magicoder"
    run_stage(UpcycleStage(
        output=tmp_path / "moe", model=str(model), upcycle=UpcycleConfig(num_experts=4, num_experts_per_tok=3)))
    one_step = SftConfig(epochs=1, batch_size=36, micro_batch_size=4, learning_rate=3e-3, precision="fp32", warmup_steps=0)
    metrics = run_stage(SftStage(
        output=tmp_path / "sft", model=str(tmp_path / "moe"), data=data, sft=one_step)).manifest.metrics
    assert metrics["steps"] == 1
    merging = MergeConfig(method="uniform", precision="fp32")
    run_stage(MixStage(output=tmp_path / "mix", model=str(tmp_path / "sft"), data=data, merge=merging))
    run_stage(MergeStage(output=tmp_path / "merged", model=str(tmp_path / "sft"), coefficients=tmp_path / "mix", data=data))
    before, after = tensors(model), tensors(tmp_path / "merged")
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    stock, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert stock.config.model_type == family and not report["missing_keys"] and not report["unexpected_keys"]
    asked = AutoProcessor.from_pretrained(tmp_path / "merged").apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}], add_generation_prompt=True)
    assert "Which?" in asked


def test_questions_about_pictures_are_asked_by_the_processor_and_graded(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    model, _ = prepared
    benchmark = tmp_path / "colours.jsonl"
    asking = {"question": "Which colour?"}
    rows = [{"task_id": f"colour/{color}", "image": drawn(color), "answer": color, **asking} for color in COLORS]
    benchmark.write_text("".join(json.dumps(row) + "\n" for row in rows))
    generate = GenerateConfig(max_new_tokens=5, precision="fp32", batch_size=3)
    run_stage(GenerateStage(
        output=tmp_path / "answers", model=str(model), benchmark=str(benchmark), prompt_style="completion", generate=generate))
    samples = [json.loads(line) for line in (tmp_path / "answers" / "samples.jsonl").read_text().splitlines()]
    assert [sample["task_id"] for sample in samples] == [row["task_id"] for row in rows]
    stock, processor = AutoModelForImageTextToText.from_pretrained(model), AutoProcessor.from_pretrained(model)
    asked = processor(text="<image>Which colour?", images=[Image.new("RGB", (24, 24), "blue")], return_tensors="pt")
    tokens = stock.generate(**asked, max_new_tokens=5, do_sample=False)[0, asked["input_ids"].shape[1]:]
    expected = processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert expected.startswith(samples[2]["completion"].rstrip("�")) or samples[2]["completion"].startswith(expected)
    metrics = run_stage(EvaluateStage(
        output=tmp_path / "verdicts", samples=tmp_path / "answers", benchmark=str(benchmark), evaluate=EvaluateConfig(),
    )).manifest.metrics
    assert metrics["problems"] == 4 and metrics["base_pass_at_1"] == 0  # the model is random


def test_an_answer_is_right_whatever_its_case_and_full_stop() -> None:
    kind, grader = PictureQuestions(), PictureQuestions().open_grader(EvaluateConfig(), Path())
    problem = kind.problem({"task_id": "a", "image": drawn("red"), "question": "Which colour?", "answer": "Dark red"}, "here")
    answers = [" dark  red.", "Dark red\nand more", "dark", "dark reddish"]
    found = [verdict.base for verdict in grader.grade(problem, [kind.solution(problem, answer, "chat") for answer in answers])]
    assert found == ["pass", "pass", "fail", "fail"]


@pytest.mark.parametrize(("picture", "reason"), [
    ("shapes/1.png", r"data\.pictures is empty"), ("data:text/plain,x", "must begin with data:image"), (5, "must be text"),
    ("data:image/png;base64,AAAA", "cannot be read")])
def test_what_is_no_picture_is_refused_with_its_row(
        picture: object, reason: str, prepared: tuple[Path, Path], tmp_path: Path) -> None:
    rows, row = tmp_path / "rows.jsonl", {"image": drawn("red"), "instruction": "Which colour?", "response": "red"}
    rows.write_text("".join(json.dumps(item) + "\n" for item in (row, row | {"image": picture})))
    data = DataConfig(path=str(rows), max_length=256)
    with pytest.raises(DataError, match=rf"line 2.*{reason}"):
        run_stage(PrepareStage(output=tmp_path / "data", model=str(prepared[0]), data=data))


def test_files_of_pictures_stay_inside_their_directory(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    for name in ("inside/a.png", "b.png"):
        (tmp_path / name).write_bytes(base64.b64decode(drawn("red").partition(",")[2]))
    assert picture_bytes("a.png", tmp_path / "inside") == picture_bytes({"path": "a.png"}, tmp_path / "inside")
    with pytest.raises(DataError, match="outside"):
        picture_bytes("../b.png", tmp_path / "inside")
