"""IFEval's kinds of instruction (Zhou et al. 2023), each with the rule that checks whether an answer follows it.

Names and arguments are those of the public file. Two rules differ slightly from the authors', which use nltk's data:
``sentences`` counts sentences, and ``CAPITAL_WORD`` finds words in capitals. Without a language detector, english_capital and
english_lowercase check only the case, and response_language cannot be checked at all (UNCHECKED).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

UNCHECKED = {"language:response_language": "there is no language detector here"}
RELATIONS = ("less than", "at least")
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
WORD = re.compile(r"\w+")
CAPITAL_WORD = re.compile(r"[^\W_]+(?:[-.][^\W_]+)*")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|Inc|Ltd|[A-Z])\.$")
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")


@dataclass(frozen=True)
class Checker:
    """``follows`` takes an answer and the arguments; ``arguments``: their types by name."""

    follows: Callable[..., bool]
    arguments: dict[str, type]


def sentences(text: str) -> int:
    """The number of sentences. A sentence ends with a full stop, question mark or exclamation mark before white space, unless
    that belongs to an abbreviation; text after the last end counts as one more."""
    ends = [end for end in SENTENCE_END.finditer(text) if not text[end.end():].strip() or not (
        end[0].startswith(".") and ABBREVIATION.search(text[max(0, end.start() - 8):end.start() + 1]))]
    rest = text[ends[-1].end():] if ends else text
    return len(ends) + bool(rest.strip())


def compares(number: int, relation: str, threshold: int) -> bool:
    """Whether a number is less than, or at least, the threshold."""
    return number < threshold if relation == RELATIONS[0] else number >= threshold


def contains(word: str, text: str) -> int:
    """How often a word occurs in a text, ignoring case."""
    return len(re.findall(re.escape(word.strip()), text, re.IGNORECASE))


def _paragraphs(answer: str, num_paragraphs: int) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", answer)
    inner = [part for place, part in enumerate(parts) if part.strip() or 0 < place < len(parts) - 1]
    return len(inner) == num_paragraphs and all(part.strip() for part in inner)


def _first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = answer.split("\n\n")
    number = sum(bool(part.strip()) for part in parts)
    if not 0 < nth_paragraph <= number or not parts[nth_paragraph - 1].strip():
        return False
    found = re.split(r"[.,?!'\"]", parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"'))[0].lower()
    return number == num_paragraphs and found == first_word.lower()


def _postscript(answer: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker) or re.escape(marker.lower())
    return re.search(pattern, answer.lower()) is not None


def _bullets(answer: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", answer, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", answer, re.MULTILINE)) == num_bullets


def _highlights(answer: str, num_highlights: int) -> bool:
    single, double = re.findall(r"\*[^\n\*]*\*", answer), re.findall(r"\*\*[^\n\*]*\*\*", answer)
    return sum(bool(text.strip("*").strip()) for text in (*single, *double)) >= num_highlights


def _json(answer: str) -> bool:
    text = re.sub(r"^```(?:json|Json|JSON)?", "", answer.strip()).removesuffix("```").strip()
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _two(answer: str) -> bool:
    parts = answer.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    given = [part.strip() for part in parts if part.strip()]
    return len(given) == 2 and given[0] != given[1]


def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", answer)) >= num_sections


COUNTED: dict[str, type] = {"relation": str}
CHECKERS: dict[str, Checker] = {
    "keywords:existence": Checker(
        lambda answer, keywords: all(contains(word, answer) for word in keywords), {"keywords": list}),
    "keywords:frequency": Checker(
        lambda answer, keyword, frequency, relation: compares(contains(keyword, answer), relation, frequency),
        {"keyword": str, "frequency": int, **COUNTED}),
    "keywords:forbidden_words": Checker(
        lambda answer, forbidden_words: not any(
            re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in forbidden_words),
        {"forbidden_words": list}),
    "keywords:letter_frequency": Checker(
        lambda answer, letter, let_frequency, let_relation: compares(
            answer.lower().count(letter.lower()), let_relation, let_frequency),
        {"letter": str, "let_frequency": int, "let_relation": str}),
    "language:response_language": Checker(lambda answer, language: False, {"language": str}),
    "length_constraints:number_sentences": Checker(
        lambda answer, num_sentences, relation: compares(sentences(answer), relation, num_sentences),
        {"num_sentences": int, **COUNTED}),
    "length_constraints:number_paragraphs": Checker(_paragraphs, {"num_paragraphs": int}),
    "length_constraints:number_words": Checker(
        lambda answer, num_words, relation: compares(len(WORD.findall(answer)), relation, num_words),
        {"num_words": int, **COUNTED}),
    "length_constraints:nth_paragraph_first_word": Checker(
        _first_word, {"num_paragraphs": int, "nth_paragraph": int, "first_word": str}),
    "detectable_content:number_placeholders": Checker(
        lambda answer, num_placeholders: len(re.findall(r"\[.*?\]", answer)) >= num_placeholders, {"num_placeholders": int}),
    "detectable_content:postscript": Checker(_postscript, {"postscript_marker": str}),
    "detectable_format:number_bullet_lists": Checker(_bullets, {"num_bullets": int}),
    "detectable_format:constrained_response": Checker(lambda answer: any(option in answer for option in CONSTRAINED), {}),
    "detectable_format:number_highlighted_sections": Checker(_highlights, {"num_highlights": int}),
    "detectable_format:multiple_sections": Checker(_sections, {"section_spliter": str, "num_sections": int}),
    "detectable_format:json_format": Checker(_json, {}),
    "detectable_format:title": Checker(
        lambda answer: any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", answer)), {}),
    "combination:two_responses": Checker(_two, {}),
    "combination:repeat_prompt": Checker(
        lambda answer, prompt_to_repeat: answer.strip().lower().startswith(prompt_to_repeat.strip().lower()),
        {"prompt_to_repeat": str}),
    "startend:end_checker": Checker(
        lambda answer, end_phrase: answer.strip().strip('"').lower().endswith(end_phrase.strip().lower()), {"end_phrase": str}),
    "startend:quotation": Checker(
        lambda answer: len(answer.strip()) > 1 and answer.strip()[0] == '"' == answer.strip()[-1], {}),
    "change_case:capital_word_frequency": Checker(
        lambda answer, capital_frequency, capital_relation: compares(
            sum(word.isupper() for word in CAPITAL_WORD.findall(answer)), capital_relation, capital_frequency),
        {"capital_frequency": int, "capital_relation": str}),
    "change_case:english_capital": Checker(lambda answer: answer.isupper(), {}),
    "change_case:english_lowercase": Checker(lambda answer: answer.islower(), {}),
    "punctuation:no_comma": Checker(lambda answer: "," not in answer, {}),
}


def loose_forms(answer: str) -> list[str]:
    """The answer, also without its first line, its last, or both; each form also without asterisks (the paper, section 3.2)."""
    lines = answer.split("\n")
    forms = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*forms, *(form.replace("*", "") for form in forms)]


def follows(name: str, arguments: dict[str, Any], answer: str) -> tuple[bool, bool]:
    """Whether an answer follows one instruction strictly, and whether loosely. An empty answer follows none."""
    checker = CHECKERS[name]
    strict = bool(answer.strip()) and checker.follows(answer, **arguments)
    return strict, strict or any(form.strip() and checker.follows(form, **arguments) for form in loose_forms(answer))
