"""The recipe's section registry."""

from pydantic import Field

from xft_core.recipe.sections.base import RecipeName, Section


class RegistryConfig(Section):
    """The merged model in MLflow's model registry."""

    enabled: bool = Field(True, description=(
        "Register the merged model. The alias champion moves to it only if its held-out loss and pass@1 (plus, first "
        "benchmark) are measured on the same data as the champion's and not worse."))
    name: RecipeName | None = Field(None, description="Name of the registered model; empty: the recipe's name.")
