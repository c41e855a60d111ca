"""Times of earlier stages: remembered only for complete stages, for the same work on the same machine."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from xft_core.planning import history
from xft_core.planning.history import Timing, likeness, remember, timings
from xft_core.planning.shape import Shape
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe

SHAPE = Shape(192, 512, 5, 2048, 192, 96, gated=True, tied=True)
MACHINE = "a processor x 2, no accelerator"


def timing(like: str = "a", work: float = 1.0, seconds: float = 10.0) -> Timing:
    return Timing(likeness=like, work=work, seconds=seconds, ended=0.0)


def of(role: str = "sft_moe", *changes: str, machine: str = MACHINE, threads: int = 1, shape: Shape = SHAPE) -> str:
    return likeness(role, parse(Recipe, {}, list(changes)), shape, machine, threads)


def test_what_is_remembered_is_found_by_its_likeness(tmp_path: Path) -> None:
    path = tmp_path / "home" / "rates.json"
    assert timings(path) == {}
    for item in (timing("a", seconds=1), timing("b"), timing("a", seconds=2)):
        remember(path, item)
    assert [item.seconds for item in timings(path)["a"]] == [1, 2]
    assert timings(path)["b"] == [timing("b")]
    assert sorted(item.name for item in path.parent.iterdir()) == ["rates.json", "rates.json.lock"]


def test_only_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rates.json"
    for number in range(history.KEPT + 3):
        remember(path, timing("a", seconds=number + 1))
    assert [item.seconds for item in timings(path)["a"]] == [number + 4 for number in range(history.KEPT)]
    monkeypatch.setattr(history, "KEPT_IN_ALL", 3)
    remember(path, timing("b"))
    assert [len(found) for found in timings(path).values()] == [2, 1]


def test_stages_that_end_at_once_are_all_remembered(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    threads = [threading.Thread(target=remember, args=[path, timing(str(number))]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(timings(path)) == 16


@pytest.mark.parametrize("content", [
    "", "{", "[]", "null", '{"version": 2, "timings": []}', '{"version": 1, "timings": [{}]}', "\x00",
    json.dumps({"version": 1, "timings": [timing().model_dump() | {"seconds": 0}]}),
    json.dumps({"version": 1, "timings": [timing().model_dump() | {"work": -1}]}),
    '{"version": 1, "timings": [{"likeness": "a", "work": NaN, "seconds": 1, "ended": 0}]}'])
def test_a_damaged_file_counts_as_empty_and_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str,
) -> None:
    path = tmp_path / "rates.json"
    path.write_text(content)
    assert timings(path) == {}
    assert "times are estimated without it" in caplog.text
    remember(path, timing("a"))
    assert list(timings(path)) == ["a"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rates.json"
    remember(path, timing("a"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as failing, pytest.raises(OSError):
        failing.setattr(os, "fsync", full)
        remember(path, timing("b"))
    assert list(timings(path)) == ["a"]


@pytest.mark.parametrize(("role", "change"), [
    ("sft_moe", "sft.precision=fp32"), ("sft_moe", "sft.micro_batch_size=1"), ("sft_moe", "sft.optimizer=adamw"),
    ("sft_moe", "sft.gradient_checkpointing=true"), ("sft_moe", "upcycle.num_experts=10"), ("sft_moe", "data.max_length=64"),
    ("sft_moe", "sft.num_processes=2"), ("sft_baseline", "sft.precision=fp32"), ("mix", "merge.precision=fp32"),
    ("mix", "merge.method=routing"), ("generate_moe", "upcycle.num_experts=10"), ("generate_base", "generate.batch_size=1"),
    ("generate_base", "generate.precision=fp32"), ("merge", "upcycle.num_experts=10"), ("upcycle", "upcycle.num_experts=10")])
def test_what_changes_the_speed_is_not_alike(role: str, change: str) -> None:
    assert parse(Recipe, {}, [change]) != Recipe()
    assert of(role, change) != of(role)


@pytest.mark.parametrize(("role", "change"), [
    ("sft_moe", "sft.learning_rate=0.5"), ("sft_moe", "sft.max_steps=7"), ("sft_moe", "seed=3"), ("sft_moe", "name=other"),
    ("sft_baseline", "upcycle.num_experts=10"), ("mix", "merge.max_steps=3"), ("generate_base", "upcycle.num_experts=10"),
    ("generate_moe", "evaluate.max_problems=3")])
def test_what_changes_only_the_result_or_the_amount_is_alike(role: str, change: str) -> None:
    assert of(role, change) == of(role)


def test_another_machine_threads_role_or_model_is_not_alike() -> None:
    others = [of(machine="another x 2, no accelerator"), of(machine="a processor x 4, no accelerator"), of(threads=2),
              of("sft_baseline"), of(shape=Shape(192, 512, 6, 2048, 192, 96, gated=True, tied=True))]
    assert len({of(), *others}) == 1 + len(others)
