"""problems.html: its content, that it requests nothing, and that a model's output stays text."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from xft_core.errors import ArtifactError
from xft_core.reporting.page import SHOWN_CHARACTERS, SHOWN_SAMPLES, Answers, write_page

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
HOSTILE = (
    "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">\n"
    "<!-- <script> ]]> @@STYLE@@ \u2028 &lt;b&gt; \\u003c </pre></body></html>")


def evaluation(root: Path, name: str, verdicts: dict[str, list[str]], completion: str = "    return 1\n") -> Answers:
    """Write a model's samples.jsonl and results.json."""
    samples, graded = root / f"{name} samples", root / f"{name} graded"
    samples.mkdir()
    graded.mkdir()
    (samples / "samples.jsonl").write_text("".join(
        json.dumps({"task_id": task_id, "sample_index": index, "prompt": f"def f{task_id}():", "completion": completion,
                    "solution": f"def f{task_id}():" + completion, "finish_reason": "length", "new_tokens": 7}) + "\n"
        for task_id, statuses in verdicts.items() for index, _ in enumerate(statuses)))
    (graded / "results.json").write_text(json.dumps({
        "benchmark": {"file": "own.jsonl", "sha256": "0", "extended_tests": True},
        "problems": [
            {"task_id": task_id, "samples": [
                {"base": status, "plus": status, "detail": completion if status == "fail" else "", "solution": completion}
                for status in statuses]}
            for task_id, statuses in verdicts.items()]}))
    return Answers(name, "Own", graded, samples)


class Elements(HTMLParser):
    """Collect every start tag with its attributes, and the text inside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


def data_of(page: Path) -> dict[str, Any]:
    return json.loads(Elements(page.read_text(encoding="utf-8")).scripts[0])


def shown(page: Path, fragment: str = "") -> str:
    assert CHROMIUM
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom",
         f"{page.as_uri()}#{fragment}"], capture_output=True, text=True, timeout=60)
    return done.stdout


def test_models_side_by_side(tmp_path: Path) -> None:
    first = evaluation(tmp_path, "first", {"a": ["pass"], "b": ["fail"], "c": ["pass"], "d": ["timeout"]})
    second = evaluation(tmp_path, "second", {"a": ["pass"], "b": ["pass"], "c": ["pass"]}, completion="    return 2\n")
    write_page("title", [first, second], tmp_path / "page.html")
    content = data_of(tmp_path / "page.html")
    (benchmark,) = content["benchmarks"]
    assert [model["plus"] for model in benchmark["models"]] == ["50.0 [15.0, 85.0]", "100.0 [43.9, 100.0]"]
    (pair,) = benchmark["pairs"]
    assert (pair["first"], pair["second"], pair["better_on"], pair["worse_on"], pair["both"]) == (1, 0, ["b"], [], 2)
    assert (pair["p"], pair["test"], pair["difference"]) == ("1.00", "McNemar's exact test", "+33.3")
    by_id = {problem["id"]: problem["answers"] for problem in benchmark["problems"]}
    assert by_id["d"][1] is None and by_id["d"][0]["samples"][0]["plus"] == "timeout"
    sample = by_id["b"][0]["samples"][0]
    assert content["texts"][sample["detail"]] == content["texts"][sample["completion"]] == "    return 1\n"
    assert sample["finish"] == "length"
    assert content["texts"].count("def fa():") == 1, "the same prompt is in the page once"


def test_very_much_is_cut_and_said(tmp_path: Path) -> None:
    many = evaluation(tmp_path, "many", {"a": ["fail"] * 30 + ["pass"] * 20}, completion="x" * (SHOWN_CHARACTERS + 5))
    write_page("title", [many], tmp_path / "page.html")
    content = data_of(tmp_path / "page.html")
    answer = content["benchmarks"][0]["problems"][0]["answers"][0]
    assert (answer["passed"], answer["graded"], answer["all"], len(answer["samples"])) == (20, 50, 50, SHOWN_SAMPLES)
    assert any(text.endswith("… and 5 characters more") for text in content["texts"])


def test_what_a_model_wrote_is_no_markup_and_nothing_is_asked_for(tmp_path: Path) -> None:
    hostile = evaluation(tmp_path, "hostile", {HOSTILE: ["fail"]}, completion=HOSTILE)
    write_page(HOSTILE, [hostile], tmp_path / "page.html")
    harmless = evaluation(tmp_path, "harmless", {"a": ["fail"]}, completion="pass")
    write_page("harmless", [harmless], tmp_path / "other.html")
    pages = [Elements((tmp_path / name).read_text(encoding="utf-8")) for name in ("page.html", "other.html")]
    assert pages[0].tags[1:] == pages[1].tags[1:], "no element and no attribute comes from what a model wrote"
    assert HOSTILE in data_of(tmp_path / "page.html")["texts"]
    assert not [attributes for _, attributes in pages[0].tags if {"src", "href", "onerror"} & attributes.keys()]
    policy = next(str(attributes["content"]) for _, attributes in pages[0].tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'") and re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", policy)
    assert "http" not in re.sub("http-equiv", "", (tmp_path / "page.html").read_text(encoding="utf-8"))


def test_half_of_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not the results\.json of an evaluation"):
        write_page("title", [evaluation(tmp_path, "odd", {"a": ["fail"]}, completion="\ud83d")], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser(tmp_path: Path) -> None:
    models = [
        evaluation(tmp_path, "hostile", {"a": ["pass"], "b/1": ["fail"]}, completion=HOSTILE),
        evaluation(tmp_path, "other", {"a": ["pass"], "b/1": ["pass"]})]
    write_page("title", models, tmp_path / "page.html")
    everything, one = shown(tmp_path / "page.html"), shown(tmp_path / "page.html", "b/1")
    assert "2 of 2 problems" in everything and 'class="columns"' not in everything
    assert "1 of 2 problems" in one and 'class="columns"' in one
    for document in (everything, one):
        assert "<title>title</title>" in document, "no script but the page's own has run"
        assert "<img" not in document
    # Escaped as text, in its place.
    assert "&lt;/script&gt;&lt;script&gt;document.title = 'owned'" in one
