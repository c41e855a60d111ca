"""The recipe section model."""

from pydantic import Field

from xft_core.recipe.sections.base import Section


class ModelConfig(Section):
    """The dense model to start from."""

    path: str = Field("demo:model", description=(
        "Model directory (safetensors), Hub name such as deepseek-ai/deepseek-coder-1.3b-base, S3 address s3://bucket/prefix "
        "of a model directory or an artifact, MLflow model (models:/name@alias, models:/name/3, runs:/id), or demo:model for "
        "the small model that ships with the package."))
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit); only for a Hub name.")
