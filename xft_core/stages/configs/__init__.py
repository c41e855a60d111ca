"""The configurations of the stages, one file each: a stage's fields, its inputs, and the settings that change its result.

Their common base is in ``xft_core/stages/base.py``. A stage may also keep its configuration in its own file,
``xft_core/stages/<stage>.py``: see CONTRIBUTING.md.
"""

import importlib

from xft_core.recipe.steps import FACTS
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.average_models import AverageModelsStage
from xft_core.stages.configs.choose_checkpoint import ChooseCheckpointStage
from xft_core.stages.configs.cluster_rows import ClusterRowsStage
from xft_core.stages.configs.dpo import DpoStage
from xft_core.stages.configs.ensemble import EnsembleStage
from xft_core.stages.configs.evaluate import EvaluateStage
from xft_core.stages.configs.export import ExportStage
from xft_core.stages.configs.generate import GenerateStage
from xft_core.stages.configs.import_reference import ImportReferenceStage
from xft_core.stages.configs.lm_eval import LmEvalStage
from xft_core.stages.configs.merge import MergeStage
from xft_core.stages.configs.merge_mixture import MergeMixtureStage
from xft_core.stages.configs.mix import MixStage
from xft_core.stages.configs.mix_data import MixDataStage, MixedSource
from xft_core.stages.configs.nll import NllStage
from xft_core.stages.configs.prepare import PrepareStage
from xft_core.stages.configs.report import CompareStage, ReportStage
from xft_core.stages.configs.row_losses import RowLossesStage
from xft_core.stages.configs.sft import SftStage
from xft_core.stages.configs.study import StudyStage
from xft_core.stages.configs.upcycle import UpcycleStage

__all__ = [
    "STAGES",
    "AverageModelsStage",
    "ChooseCheckpointStage",
    "ClusterRowsStage",
    "CompareStage",
    "DpoStage",
    "EnsembleStage",
    "EvaluateStage",
    "ExportStage",
    "GenerateStage",
    "ImportReferenceStage",
    "LmEvalStage",
    "MergeMixtureStage",
    "MergeStage",
    "MixDataStage",
    "MixStage",
    "MixedSource",
    "NllStage",
    "PrepareStage",
    "ReportStage",
    "RowLossesStage",
    "SftStage",
    "StudyStage",
    "UpcycleStage",
]

_HERE = {config.stage: config for config in (
    AverageModelsStage,
    ChooseCheckpointStage,
    ClusterRowsStage,
    CompareStage,
    DpoStage,
    EnsembleStage,
    EvaluateStage,
    ExportStage,
    GenerateStage,
    ImportReferenceStage,
    LmEvalStage,
    MergeStage,
    MixDataStage,
    MixStage,
    NllStage,
    PrepareStage,
    ReportStage,
    RowLossesStage,
    SftStage,
    StudyStage,
    UpcycleStage,
)}


def _in_own_file(stage: str) -> type[StageConfig]:
    """Return the configuration of a stage outside this package, from the file of the same name, xft_core/stages/<stage>.py."""
    found = vars(importlib.import_module(f"xft_core.stages.{stage}")).values()
    return next(item for item in found
                if isinstance(item, type) and issubclass(item, StageConfig) and getattr(item, "stage", None) == stage)


# Defined last, because a stage's own file may import from this package.
STAGES: dict[str, type[StageConfig]] = {stage: _HERE.get(stage) or _in_own_file(stage) for stage in FACTS}
