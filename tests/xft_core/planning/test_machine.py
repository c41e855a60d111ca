"""A machine's memory, disk, load and name."""

from pathlib import Path

import pytest

from xft_core.planning.machine import machine_name, slowdown, store_size, this_machine


def test_this_machine_has_memory_and_disk(tmp_path: Path) -> None:
    machine = this_machine(tmp_path / "not" / "there" / "yet")
    assert machine.memory > 1e9 and machine.disk > 0 and machine.for_models > 1e9
    (tmp_path / "a").write_bytes(bytes(1000))
    assert (store_size(tmp_path), store_size(tmp_path / "absent")) == (1000, 0)


def test_the_load_of_the_machine_slows_work_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("os.getloadavg", lambda: (1.0, 4.0, 8.0))
    assert [slowdown(), slowdown(more=3), slowdown(over_seconds=300), slowdown(over_seconds=3000)] == [1.0, 2.0, 2.0, 4.0]


def test_a_machine_is_named_by_what_makes_it_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    assert machine_name().endswith(" x 3, no accelerator")
