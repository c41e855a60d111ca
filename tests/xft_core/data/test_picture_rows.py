"""A row with pictures is read from every form that data sets use; anything else is refused with its reason."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xft_core.data import picture_rows
from xft_core.data.picture_rows import opened, picture_bytes, picture_row
from xft_core.errors import DataError


def picture(kind: str = "PNG", mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (3, 2), 200).save(stream, kind)
    return stream.getvalue()


def row(**fields: Any) -> dict[str, Any]:
    return {"instruction": "What is shown?", "response": "A square."} | fields


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture())
    (tmp_path / "outside.png").write_bytes(picture())
    return tmp_path / "pictures"


def test_every_form_of_a_picture_gives_its_bytes(directory: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    forms = ["a.png", {"path": "a.png"}, {"bytes": picture()}, {"bytes": picture(), "path": "other.png"}, url]
    assert {picture_bytes(form, directory) for form in forms} == {picture()}
    assert picture_row(row(images=forms), directory).pictures == (picture(),) * 5
    assert picture_row(row(image="a.png"), directory).pictures == (picture(),)
    assert picture_row(row(), directory).pictures == ()


@pytest.mark.parametrize(("value", "reason"), [
    (3, "is a int"), ({"path": None}, "is a dict"), ("data:text/plain;base64,QQ==", "must begin with data:image/"),
    ("data:image/png,QQ==", "must begin with data:image/"), ("data:image/png;base64,Q", "not valid base64"),
    ("../outside.png", "is outside data.pictures"), ("missing.png", "cannot be read: No such file"), (".", "cannot be read")])
def test_what_is_no_picture_is_refused(directory: Path, value: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason.replace(".", r"\.")):
        picture_bytes(value, directory)


def test_a_link_that_leads_outside_is_refused(directory: Path) -> None:
    (directory / "link.png").symlink_to(directory.parent / "outside.png")
    with pytest.raises(DataError, match="is outside"):
        picture_bytes("link.png", directory)


def test_a_file_without_a_directory_says_what_to_set() -> None:
    with pytest.raises(DataError, match=r"data\.pictures is empty"):
        picture_bytes("a.png", None)


def conversation(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"text {number}"} for number, role in enumerate(roles)]}


@pytest.mark.parametrize(("given", "reason"), [
    ([1], "but this is a list"),
    (conversation("system", "user", "assistant"), "has 3 messages"),
    (conversation("user", "assistant", "user", "assistant"), "has 4 messages")])
def test_a_row_that_is_not_one_question_and_one_answer_is_refused(given: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        picture_row(given, None)


def test_a_picture_may_be_the_question_but_text_or_picture_there_must_be(directory: Path) -> None:
    assert picture_row(row(instruction="", image="a.png"), directory).question == ""
    with pytest.raises(DataError):
        picture_row(row(instruction=""), directory)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("JPEG", "RGB")])
def test_pictures_are_opened_in_colour(kind: str, mode: str) -> None:
    image = opened(picture(kind, mode))
    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_what_cannot_be_opened_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"", b"not a picture", picture()[:40], picture("TIFF")):
        with pytest.raises(DataError, match="cannot be read as any of"):
            opened(content)
    monkeypatch.setattr(picture_rows, "MOST_PIXELS", 5)
    with pytest.raises(DataError, match="3 x 2 pixels, more than 5"):
        opened(picture())
