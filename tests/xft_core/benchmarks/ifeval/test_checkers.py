"""Every kind of IFEval instruction: an answer that follows it passes, a near miss does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.factories import dense_model
from xft_core.benchmarks.ifeval.benchmark import IFEval, Instructed, RuleGrader
from xft_core.benchmarks.ifeval.checkers import CHECKERS, UNCHECKED, follows, sentences
from xft_core.benchmarks.registry import kind_of
from xft_core.errors import DataError
from xft_core.recipe.sections import EvaluateConfig, GenerateConfig
from xft_core.stages.configs import EvaluateStage, GenerateStage
from xft_core.stages.run import run_stage

EXAMPLE = Path(__file__).with_name("example.jsonl")
CASES: list[tuple[str, dict[str, Any], str, str]] = [  # name, arguments, an answer that follows it, one that does not
    ("keywords:existence", {"keywords": ["tea", "C++"]}, "Tea and c++.", "Tea and C."),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "tea, Tea", "one tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, "one tea", "tea, Tea"),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "A team of teas.", "No TEA, please."),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 3, "let_relation": "at least"}, "Emerge", "Emery n"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "Dr. No left. Why?",
     "Dr. No left"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "It costs 2.50 e.g. here.",
     "Oh! No."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***", "one\n***\n***\ntwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two words", "not two words"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "tea"},
     "one\n\n\"Tea,\" he said", "Tea\n\none"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [city]", "[name"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. Call.", "Bye. PS call"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S call", "Bye.\nP.S. call"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n** two"),
    ("detectable_format:constrained_response", {}, "Well: My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and *two*", "*one* and * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1 a Section 2 b", "Section 1 a section 2 b"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<Tea>>\nnice", "<< >>"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why tea?"}, "why tea? Because.", "Because. Why tea?"),
    ("startend:end_checker", {"end_phrase": "So long."}, '"Tea. so long."', "So long. Bye"),
    ("startend:quotation", {}, '"tea"', '"'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "GOOD TEA-TIME",
     "GOOD Tea"),
    ("change_case:english_capital", {}, "GOOD TEA", "GOOD tea"),
    ("change_case:english_lowercase", {}, "good tea", "good Tea"),
    ("punctuation:no_comma", {}, "tea and rice", "tea, rice")]


def test_every_name_of_the_paper_has_a_case() -> None:
    assert len(CHECKERS) == 25 and {name for name, *_ in CASES} | UNCHECKED.keys() == CHECKERS.keys()


@pytest.mark.parametrize("name, arguments, right, wrong", CASES)
def test_what_follows_passes_and_a_near_miss_does_not(name: str, arguments: dict[str, Any], right: str, wrong: str) -> None:
    assert arguments.keys() == CHECKERS[name].arguments.keys()
    assert follows(name, arguments, right) == (True, True)
    assert follows(name, arguments, wrong)[0] is False and follows(name, arguments, " \n") == (False, False)


@pytest.mark.parametrize("text, number", [
    ("", 0), ("One", 1), ("One. Two! Three?", 3), ("He said \"No.\" Then he left.", 2), ("Pi is 3.14.", 1),
    ("Wait... what?", 2), ("Mr. A. Smith, e.g. him.", 1), ("The end etc.", 1)])
def test_sentences(text: str, number: int) -> None:
    assert sentences(text) == number


def test_loose_forgives_a_first_or_last_line_and_stars() -> None:
    grader = RuleGrader()
    problem = Instructed("1", "?", (("startend:quotation", {}), ("punctuation:no_comma", {})))
    right, loosely, wrong = grader.grade(problem, ['"tea"', 'Sure, here:\n"tea"', "tea"])
    assert (right.base, right.plus) == ("pass", "pass")
    assert (loosely.base, loosely.plus) == ("pass", "fail") and loosely.detail == (
        "not followed: startend:quotation, punctuation:no_comma")
    assert loosely.measures == {"instructions_strict": [0, 2], "instructions_loose": [2, 2]}
    assert (wrong.base, wrong.measures) == ("fail", {"instructions_strict": [1, 2], "instructions_loose": [1, 2]})


def test_a_file_is_asked_and_graded(tmp_path: Path) -> None:
    model = dense_model(tmp_path / "model")
    run_stage(GenerateStage(
        output=tmp_path / "answers", model=str(model), benchmark=str(EXAMPLE), prompt_style="magicoder",
        generate=GenerateConfig(max_new_tokens=8, precision="fp32")))
    metrics = run_stage(EvaluateStage(
        output=tmp_path / "verdicts", samples=tmp_path / "answers", benchmark=str(EXAMPLE),
        evaluate=EvaluateConfig())).manifest.metrics
    assert metrics["problems"] == 6 and metrics["infrastructure_errors"] == 1  # nothing here detects an answer's language
    assert {"measure/instructions_strict", "measure/instructions_loose", "base_pass_at_1", "plus_pass_at_1"} <= metrics.keys()
    right = {"1": '"tea"', "2": "tea time", "3": '{"a": 1}', "4": "<<A>> b", "5": "oui", "6": "* a\n* b\nP.S. c"}
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps({"task_id": key, "solution": answer}) + "\n" for key, answer in right.items()))
    metrics = run_stage(EvaluateStage(
        output=tmp_path / "right", samples=samples, benchmark=str(EXAMPLE), evaluate=EvaluateConfig())).manifest.metrics
    assert metrics["plus_pass_at_1"] == metrics["measure/instructions_strict"] == 1


@pytest.mark.parametrize("change, named", [
    ({"key": None}, "key is null"), ({"key": True}, "key is true"), ({"prompt": ""}, 'prompt is ""'),
    ({"instruction_id_list": []}, "instruction_id_list is"), ({"kwargs": [{}]}, "list of 2 objects"),
    ({"kwargs": {}}, "kwargs is"),
    ({"instruction_id_list": ["punctuation:no_comma", "startend:comma"]}, "'?startend:comma.*none of IFEval's"),
    ({"kwargs": [{}, {"num_bullets": "2"}]}, 'num_bullets is "2". Give a whole number'),
    ({"kwargs": [{}, {}]}, "num_bullets is null"), ({"kwargs": [{"x": 1}, {"num_bullets": 2}]}, "no argument 'x'")])
def test_a_broken_row_is_named(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    names = ["punctuation:no_comma", "detectable_format:number_bullet_lists"]
    row = {"key": 7, "prompt": "List two.", "instruction_id_list": names,
           "kwargs": [{}, {"num_bullets": 2, "keyword": None}]}
    path = tmp_path / "ifeval.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"key": 8} | change) + "\n")
    kind = kind_of(path)
    assert isinstance(kind, IFEval)
    with pytest.raises(DataError, match=f"line 2: .*{named}"):
        kind.load_problems(path)
