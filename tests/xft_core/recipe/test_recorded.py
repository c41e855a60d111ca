"""Recorded sections: a field added later is omitted at its default, so that keys stay the same."""

from typing import ClassVar

from pydantic import Field

from xft_core.recipe.sections import Section


class Inner(Section):
    added: ClassVar[frozenset[str]] = frozenset({"later", "listed"})

    first: int = 1
    later: float = 1.0
    listed: list[int] = Field(default_factory=list)


class Outer(Section):
    inner: Inner = Inner()
    several: list[Inner] = Field(default_factory=list)
    name: str = "a"


def test_an_added_field_is_recorded_only_where_it_differs_from_its_default() -> None:
    assert Outer(several=[Inner(), Inner(later=2)]).recorded() == {
        "inner": {"first": 1}, "several": [{"first": 1}, {"first": 1, "later": 2.0}], "name": "a"}
    assert Inner(later=0.5, listed=[1]).recorded() == {"first": 1, "later": 0.5, "listed": [1]}


def test_what_is_excluded_is_not_recorded() -> None:
    assert Outer().recorded(frozenset({"name", "several"})) == {"inner": {"first": 1}}


def test_every_field_is_shown_where_people_look() -> None:
    assert Inner().model_dump() == {"first": 1, "later": 1.0, "listed": []}
