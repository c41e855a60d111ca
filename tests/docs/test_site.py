"""The site: the pages generated from the code, and that everything builds without a warning."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from tests.docs.pages import DOCS, REPOSITORY
from xft_core.recipe.sections import Recipe
from xft_core.stages.configs import STAGES


def load_generator() -> ModuleType:
    """Load docs/generate.py, a MkDocs hook that belongs to no package."""
    specification = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_field_of_the_recipe_is_on_its_page() -> None:
    page = load_generator().recipe_page()
    for name, info in Recipe.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            for field, inner in info.annotation.model_fields.items():
                row, = [line for line in page.splitlines() if line.startswith(f"| `{name}.{field}` |")]
                assert row.count(" | ") == 3 and row.split(" | ")[3].removesuffix(" |").strip(), row
                assert (inner.description or "")[:10].split("\n")[0] in row
        else:
            assert f"| `{name}` |" in page


def test_every_stage_and_command_is_on_its_page() -> None:
    generator = load_generator()
    stages, commands = generator.stages_page(), generator.commands_page()
    assert all(f"## {name}\n" in stages for name in STAGES)
    for command in ("xft run", "xft compare", "xft plan", "xft ui", "xft store gc", "xft relocate", "python -m xft_core diff"):
        assert f"## {command}\n" in commands


def test_the_api_has_every_package() -> None:
    packages = load_generator().packages()
    assert {"xft_core.moe", "xft_core.stages", "tasks.tracking", "flows"} <= packages.keys()
    assert "xft_core.moe.router" in packages["xft_core.moe"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    made = tmp_path / "site" / "reference" / "api" / "xft_core.moe.html"
    assert "routing_weights" in made.read_text(encoding="utf-8")
    assert "scale mismatch" in (tmp_path / "site" / "reference" / "recipe.html").read_text(encoding="utf-8")
