"""A hook of MkDocs: pages that are made from the code at every build, so that they cannot become untrue.

    reference/recipe.md     every field of the recipe, from the pydantic models
    reference/stages.md     every stage: what it does, its version, its fields
    reference/commands.md   every command, from the parsers
    reference/families.md   the table of model families
    reference/api/*.md      one page a package, from the docstrings
"""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parent.parent
API = "reference/api"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the API pages where the navigation says API."""
    pages = [{package: f"{API}/{package}.md"} for package in packages()]
    config.nav = [_with_api(entry, pages) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, make in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    for package, modules in packages().items():
        files.append(File.generated(config, f"{API}/{package}.md", content=api_page(package, modules)))
    return files


def _with_api(entry: Any, pages: list[dict[str, str]]) -> Any:
    if isinstance(entry, dict):
        return {title: pages if below == "API" else _with_api(below, pages) for title, below in entry.items()}
    return [_with_api(item, pages) for item in entry] if isinstance(entry, list) else entry


def packages() -> dict[str, list[str]]:
    """Every package of the three layers and its modules, by their dotted names."""
    found: dict[str, list[str]] = {}
    for layer in ("xft_core", "tasks", "flows"):
        for path in sorted((ROOT / layer).rglob("*.py")):
            module = path.relative_to(ROOT).with_suffix("")
            if path.stat().st_size and path.name not in ("__init__.py", "__main__.py"):
                found.setdefault(".".join(module.parts[:-1]), []).append(".".join(module.parts))
    return found


def api_page(package: str, modules: list[str]) -> str:
    """The public names of a package's modules."""
    members = "\n".join(f"::: {module}\n" for module in modules)
    purpose = f"Look up a public class or function of `{package}`. The text is that of the docstrings."
    return f"# `{package}`\n\n{purpose}\n\n{members}"


def recipe_page() -> str:
    """Every field of the recipe."""
    from xft_core.recipe.sections import Recipe

    lines = ["# Recipe", "", (
        "Look up a field of the recipe. A recipe is a YAML file; each field that it leaves out has the default shown here. The "
        "defaults are those of the paper's reference run, unless the help text says why not. Unknown fields are errors."), ""]
    sections = {name: info for name, info in Recipe.model_fields.items() if _section(info)}
    lines += ["## The recipe itself", "", *_fields(
        (name, info) for name, info in Recipe.model_fields.items() if name not in sections)]
    for name, info in sections.items():
        section = _section(info)
        assert section is not None
        lines += ["", f"## {name}", "", section.__doc__ or "", "", *_fields(section.model_fields.items(), f"{name}.")]
    return "\n".join(lines)


def stages_page() -> str:
    """Every stage and its fields."""
    from xft_core.stages.base import StageConfig
    from xft_core.stages.configs import STAGES

    common = set(StageConfig.model_fields)
    lines = ["# Stages", "", (
        "Look up the fields of a stage, for `python -m xft_core STAGE CONFIG.yaml` ([Run one stage](../how-to/one-stage.md)). "
        "A field whose type is a section has the fields of that [section of the recipe](recipe.md)."), "",
        "All stages have these fields:", "", *_fields(StageConfig.model_fields.items())]
    for name, stage in STAGES.items():
        own = [(field, info) for field, info in stage.model_fields.items() if field not in common]
        what = f"{stage.summary} Version {stage.version}, in `{stage.implementation}`."
        lines += ["", f"## {name}", "", what, "", *_fields(own)]
    return "\n".join(lines)


def commands_page() -> str:
    """Every command with its options."""
    from flows.options import parser as xft
    from xft_core.__main__ import _parser as core

    os.environ["COLUMNS"] = "110"
    lines = ["# Commands", "", (
        "Look up a command or an option. `xft` runs pipelines; `python -m xft_core` runs single stages, without Prefect and "
        "MLflow. The `make` targets are in the Makefile."), ""]
    for parser in (xft(), core()):
        for name, command in _subparsers(parser):
            if getattr(command, "config", None) is not None:
                continue  # a stage: they are all alike, and their fields are on a page of their own
            lines += [f"## {parser.prog} {name}", "", "```text", command.format_help().strip(), "```", ""]
    return "\n".join([*lines, "## python -m xft_core STAGE", "", "One stage; see [Stages](stages.md).", "", *_exit_statuses()])


def _exit_statuses() -> list[str]:
    return [
        "## Exit status", "", "| status | `xft` | `python -m xft_core` |", "|---|---|---|",
        "| 0 | done | done |", "| 1 | a stage failed | an internal error |",
        "| 2 | an invalid recipe or setting | a mistake that the message explains |",
        "| 75 | | a failure that may pass: start it again |", "| 130 | interrupted | interrupted |",
        "| 137 | | a process of the stage was killed |", "| 141 | nobody reads the output | nobody reads the output |"]


def families_page() -> str:
    """The table of families."""
    from xft_core.families import FAMILIES, PICTURE_FAMILIES

    lines = ["# Model families", "", (
        "Look up how a model is upcycled: its `model_type` in config.json may be in this table. For any other dense decoder of "
        "transformers the row is found and proved: see [Families outside the table](../explanation/options/families.md)."), "",
        "| model_type | layers into the FFN | layer out of it | gated |", "|---|---|---|---|"]
    for name, family in FAMILIES.items():
        up = ", ".join(f"`{layer}`" for layer in family.up)
        lines.append(f"| {name} | {up} | `{family.down}` | {'yes' if family.gated else 'no'} |")
    lines += ["", (
        "Of a model that reads pictures, the language model inside is upcycled; it must be of a family above. See "
        "[Models that read pictures](../explanation/options/pictures.md)."), "",
        "| model_type | the language model inside |", "|---|---|",
        *(f"| {name} | `{inside}` |" for name, inside in PICTURE_FAMILIES.items())]
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    "recipe": recipe_page, "stages": stages_page, "commands": commands_page, "families": families_page}


def _section(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _fields(fields: Any, prefix: str = "") -> list[str]:
    rows = [
        f"| `{prefix}{name}` | {_type(info)} | {_default(info)} | {_cell(info.description or '')} |" for name, info in fields]
    return ["| field | values | default | meaning |", "|---|---|---|---|", *rows]


def _type(info: FieldInfo) -> str:
    bounds = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [
        f"{word} {getattr(constraint, name)}" for constraint in info.metadata for name, word in bounds.items()
        if getattr(constraint, name, None) is not None]
    return _cell(", ".join([_name(info.annotation), *limits]))


def _name(kind: Any) -> str:
    arguments = get_args(kind)
    if get_origin(kind) in (list, dict):
        return f"{get_origin(kind).__name__} of {' to '.join(_name(item) for item in arguments)}"
    if arguments and str(get_origin(kind)) == "typing.Literal":
        return ", ".join(f"`{value}`" for value in arguments)
    if getattr(kind, "__metadata__", None):
        return _name(arguments[0])
    if arguments:
        return " or ".join("empty" if item is type(None) else _name(item) for item in arguments)
    return {"str": "text", "int": "whole number", "float": "number", "bool": "`true`, `false`"}.get(
        getattr(kind, "__name__", str(kind)), getattr(kind, "__name__", str(kind)))


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = None if info.default is PydanticUndefined else info.default
    if value is None:
        return "empty"
    if isinstance(value, BaseModel):
        return "the section's"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                nested = list(_subparsers(command))
                yield from ((f"{name} {below}", inner) for below, inner in nested) if nested else [(name, command)]
