"""The tiny recipe of the flow tests, as a user enters it: as overrides, or typed into the form."""

import json

from tests.flows.conftest import RECIPE
from tests.ui.browser import Form
from tests.ui.xft_ui import XftUi, wait_for

SECTIONS = {name: values for name, values in RECIPE.items() if isinstance(values, dict)}
OVERRIDES = [f"{section}.{name}={json.dumps(value)}" for section, values in SECTIONS.items() for name, value in values.items()]


def fill_in_tiny_recipe(form: Form) -> None:
    form.fill(None, "name", str(RECIPE["name"]))
    for section, values in SECTIONS.items():
        for name, value in values.items():
            form.fill(section, name, value)


def submitted(form: Form, ui: XftUi, deployment: str = "pipeline") -> str:
    """Submit the form; returns the id of the new run."""
    before = {run["id"] for run in ui.runs(deployment)}
    answers = form.submit()
    made = wait_for(
        lambda: {run["id"] for run in ui.runs(deployment)} - before, 60,
        lambda: f"no run was made, the page had {answers} and says {form.complaints()}")
    return str(made.pop())
