"""The recipe section registry."""

import warnings
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import RecipeName, Section

with warnings.catch_warnings():
    # pydantic warns about a field with the name of a method of abstract classes; nothing here calls that method.
    warnings.filterwarnings("ignore", message='Field name "register"')

    class RegistryConfig(Section):
        """The merged model in MLflow's model registry."""

        added: ClassVar[frozenset[str]] = frozenset({"register", "approval"})

        register: Literal["champion", "all", "none"] = Field("champion", description=(  # type: ignore[assignment]
            "Which merged models become registered versions: champion (only a model that takes the alias champion; never a "
            "variant of a comparison), all (the model of every run, including variants) or none. The alias moves to a model "
            "only if its held-out loss and pass@1 (plus, first benchmark) are measured on the same data as the champion's and "
            "are no worse."))
        approval: Literal["none", "required"] = Field("none", description=(
            "none: the alias moves by that rule alone. required: the alias also needs approval. A run of a deployment is "
            "suspended until a user answers on the run's page in Prefect."))
        name: RecipeName | None = Field(None, description="Name of the registered model; empty: the recipe's name.")

        @model_validator(mode="before")
        @classmethod
        def _as_it_was_written(cls, values: Any) -> Any:
            """Accept the former field ``enabled``: false means register none."""
            if not isinstance(values, dict) or not isinstance(values.get("enabled"), bool):
                return values
            rest = {name: value for name, value in values.items() if name != "enabled"}
            return rest if values["enabled"] else rest | {"register": "none"}
