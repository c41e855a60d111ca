"""A model's digest covers every file that changes what the model says, and no other."""

from pathlib import Path

import pytest

from xft_core.files.digests import directory_digest

FILES = {"config.json": "{}", "model.safetensors": "weights", "chat_template.jinja": "{{ messages }}",
         "additional_chat_templates/tool_use.jinja": "{{ tools }}"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_any_file_changes_the_digest(name: str, model: Path) -> None:
    before = directory_digest(model)
    (model / name).write_text("changed")
    assert directory_digest(model) != before
    (model / name).write_text(FILES[name])
    assert directory_digest(model) == before
    (model / name).unlink()
    assert directory_digest(model) != before


@pytest.mark.parametrize("name", ["README.md", ".cache.json", "additional_chat_templates/notes.md"])
def test_notes_and_caches_do_not_count(name: str, model: Path) -> None:
    before = directory_digest(model)
    (model / name).write_text("a note")
    assert directory_digest(model) == before
