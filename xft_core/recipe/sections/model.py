"""The recipe's section model."""

from pydantic import Field

from xft_core.recipe.sections.base import Section


class ModelConfig(Section):
    """The dense model to start from."""

    path: str = Field("demo:model", description=(
        "Model directory (safetensors), a Hub name such as deepseek-ai/deepseek-coder-1.3b-base, an S3 address "
        "s3://bucket/prefix of a model directory or of an artifact, a model of MLflow's registry (models:/NAME@champion or "
        "models:/NAME/VERSION, to go on from an earlier run), or demo:model for the small model that ships with the "
        "package."))
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit); only for a Hub name.")
