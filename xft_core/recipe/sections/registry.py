"""The recipe's section registry."""

import warnings
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import RecipeName, Section

with warnings.catch_warnings():
    # pydantic warns of a field that is called as a method of all abstract classes, which nobody calls here.
    warnings.filterwarnings("ignore", message='Field name "register"')

    class RegistryConfig(Section):
        """The merged model in MLflow's model registry."""

        added: ClassVar[frozenset[str]] = frozenset({"register", "approval"})

        register: Literal["champion", "all", "none"] = Field("champion", description=(  # type: ignore[assignment]
            "Which merged models become versions: champion (one that takes the alias champion; of the variants of a comparison "
            "none), all (every run's, variants too), none. The alias moves to a model only if its held-out loss and pass@1 "
            "(plus, first benchmark) are measured on the same data as the champion's and not worse."))
        approval: Literal["none", "required"] = Field("none", description=(
            "none: the alias moves by that rule alone. required: it moves only when a person has approved it. A run of a "
            "deployment is suspended for that, and its page in Prefect asks."))
        name: RecipeName | None = Field(None, description="Name of the registered model; empty: the recipe's name.")

        @model_validator(mode="before")
        @classmethod
        def _as_it_was_written(cls, values: Any) -> Any:
            """Recipes used to say ``enabled``: false is register none."""
            if not isinstance(values, dict) or not isinstance(values.get("enabled"), bool):
                return values
            rest = {name: value for name, value in values.items() if name != "enabled"}
            return rest if values["enabled"] else rest | {"register": "none"}
