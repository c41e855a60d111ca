"""Labels are unique, readable, and stay the same when others are listed too."""

import unicodedata

from xft_core.recipe.labels import LONGEST_NAME, flat, flat_names, group_names, path_labels, unique_labels
from xft_core.reporting.run.evidence import benchmark_titles

AWKWARD = ["d2/h.jsonl", "d3/h.jsonl", "e/d3/h.jsonl", "数据.jsonl", "测试.jsonl", "a+b.jsonl", "a_b.jsonl",
           "x/x.jsonl", "x.jsonl", "x.jsonl", "x.jsonl (1)", "demo:x.jsonl", "/x.jsonl", "s3://b/x.jsonl", "A.jsonl",
           "a.jsonl", "+", "", "a b", "a-b"]


def test_no_two_labels_and_no_two_names_are_the_same() -> None:
    composed, separate = (unicodedata.normalize(form, "ä.jsonl") for form in ("NFC", "NFD"))
    labels = path_labels([*AWKWARD, composed, separate])
    assert len({unicodedata.normalize("NFC", label) for label in labels}) == len(labels)
    names = list(flat_names(labels).values())
    assert len(set(names)) == len(names) and all(names)


def test_labels_are_as_short_as_can_be() -> None:
    assert path_labels(["d2/h.jsonl", "d3/h.jsonl", "other/数据.jsonl"]) == ["d2/h.jsonl", "d3/h.jsonl", "数据.jsonl"]
    assert path_labels(["a/b/h", "c/b/h", "d/h"]) == ["a/b/h", "c/b/h", "d/h"]
    assert path_labels(["h", "h"]) == ["h (1)", "h (2)"]
    assert flat("NLL on other.jsonl") == "nll_on_other_jsonl" and flat("数据.jsonl") == "数据_jsonl"


def test_others_change_no_label_that_is_alone_and_no_name() -> None:
    few = ["d2/h.jsonl", "d3/h.jsonl", "a+b.jsonl", "a_b.jsonl"]
    labels = path_labels(few)
    assert path_labels([*few, "d4/h.jsonl", "new.jsonl"])[:4] == labels
    assert path_labels(["new.jsonl", *few])[1:] == labels
    names = flat_names(labels)
    more = flat_names([*labels, "a-b.jsonl", "z"])
    assert {label: more[label] for label in labels} == names


def test_long_and_taken_names() -> None:
    names = flat_names(["数" * 200 + "a", "数" * 200 + "b", "acc", "held out nll"], taken={"held_out_nll"})
    assert len(set(names.values())) == 4 and all(len(name.encode()) <= LONGEST_NAME + 7 for name in names.values())
    assert names["acc"] == "acc" and names["held out nll"].startswith("held_out_nll_")


def test_benchmarks_are_told_apart_also_from_each_others_extended_tests() -> None:
    titles = benchmark_titles(["mbpp", "x/MbppPlus-v0.2.0.jsonl", "d/mine.jsonl", "d/mine+.jsonl", "d2/same.jsonl.gz",
                               "d3/same.jsonl", "humaneval", "multipl-e/js", "demo:benchmark.jsonl", "demo benchmark.jsonl"])
    rows = [title + plus for title in titles for plus in ("", "+")]
    assert len(set(rows)) == len(rows)
    assert titles[:2] == ["MBPP (mbpp)", "MBPP (MbppPlus-v0.2.0)"] and titles[4:8] == [
        "d2/same", "d3/same", "HumanEval", "MultiPL-E js"]


def test_groups_of_two_criteria_with_one_name() -> None:
    names = group_names([("library", "Pandas"), ("source", "pandas"), ("library", "Difficult-Rewrite")])
    assert names == {("library", "Pandas"): "library_pandas", ("source", "pandas"): "source_pandas",
                     ("library", "Difficult-Rewrite"): "difficult-rewrite"}


def test_groups_whose_names_differ_in_signs_only_are_told_apart() -> None:
    groups = [("kind", "surface mod"), ("kind", "surface_mod"), ("kind", "surface+mod"), ("kind", "Surface mod")]
    assert len(set(group_names(groups).values())) == len(groups)


def test_numbering_takes_no_ones_name() -> None:
    assert unique_labels([["a"], ["a"], ["a (1)"]]) == ["a (2)", "a (3)", "a (1)"]
