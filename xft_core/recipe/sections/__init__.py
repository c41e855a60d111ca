"""The recipe: every choice of a run, with its default and help text, for the UI form, command line and MLflow parameters.

The models are frozen pydantic models that reject unknown fields. This package does not import torch, because flows, forms and
the command line import it. The defaults are those of the XFT paper's reference run (arXiv 2404.15247, DeepSeek-Coder-1.3B),
unless a help text explains the difference.
"""

from xft_core.recipe.sections.base import (
    LARGEST_NUMBER,
    LONGEST_TEXT,
    PROCESS_FIELDS,
    ExperimentName,
    MergeMethod,
    Normalization,
    Precision,
    PromptStyle,
    Reaction,
    RecipeName,
    Section,
    Seed,
    WeightAverage,
)
from xft_core.recipe.sections.baseline import BaselineConfig, Match, WorkToMatch
from xft_core.recipe.sections.checks import ChecksConfig
from xft_core.recipe.sections.data import DataConfig, SourceConfig
from xft_core.recipe.sections.dpo import DpoConfig
from xft_core.recipe.sections.evaluate import EvaluateConfig
from xft_core.recipe.sections.export import ExportConfig, ExportForm, Quantization
from xft_core.recipe.sections.generate import GenerateConfig
from xft_core.recipe.sections.merge import MergeConfig
from xft_core.recipe.sections.model import ModelConfig
from xft_core.recipe.sections.recipe import Recipe
from xft_core.recipe.sections.registry import RegistryConfig
from xft_core.recipe.sections.sft import SftConfig
from xft_core.recipe.sections.upcycle import UpcycleConfig

__all__ = [
    "LARGEST_NUMBER",
    "LONGEST_TEXT",
    "PROCESS_FIELDS",
    "BaselineConfig",
    "ChecksConfig",
    "DataConfig",
    "DpoConfig",
    "EvaluateConfig",
    "ExperimentName",
    "ExportConfig",
    "ExportForm",
    "GenerateConfig",
    "Match",
    "MergeConfig",
    "MergeMethod",
    "ModelConfig",
    "Normalization",
    "Precision",
    "PromptStyle",
    "Quantization",
    "Reaction",
    "Recipe",
    "RecipeName",
    "RegistryConfig",
    "Section",
    "Seed",
    "SftConfig",
    "SourceConfig",
    "UpcycleConfig",
    "WeightAverage",
    "WorkToMatch",
]
