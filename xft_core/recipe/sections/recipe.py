"""The recipe: all sections, and what is about the whole run."""

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import ExperimentName, PromptStyle, RecipeName, Section, Seed
from xft_core.recipe.sections.baseline import BaselineConfig
from xft_core.recipe.sections.checks import ChecksConfig
from xft_core.recipe.sections.data import DataConfig
from xft_core.recipe.sections.evaluate import EvaluateConfig
from xft_core.recipe.sections.generate import GenerateConfig
from xft_core.recipe.sections.merge import MergeConfig
from xft_core.recipe.sections.model import ModelConfig
from xft_core.recipe.sections.registry import RegistryConfig
from xft_core.recipe.sections.sft import SftConfig
from xft_core.recipe.sections.upcycle import UpcycleConfig


class Recipe(Section):
    """One run of the pipeline, complete."""

    name: RecipeName = Field("demo", description=(
        "Name of the recipe: letters, digits, dot, dash, underscore. Runs and models are called by it."))
    seed: Seed = Field(0, description=(
        "Seed of everything random in training and sampling: order, router, noise, samples. (The choice of rows has a seed of "
        "its own: data.split_seed.)"))
    experiment: ExperimentName = Field("xft", description="MLflow experiment the run belongs to.")
    check_fit: bool = Field(True, description=(
        "Refuse, before any work, a recipe that surely needs more memory or disk than this machine has (see xft plan)."))
    model: ModelConfig = Field(ModelConfig(), description="The dense model that everything starts from.")
    data: DataConfig = Field(DataConfig(), description=(
        "Instruction data and how it becomes training text, rows and held-out rows."))
    baseline: BaselineConfig = Field(BaselineConfig(), description="The control: plain SFT of the dense model.")
    upcycle: UpcycleConfig = Field(UpcycleConfig(), description="From the dense model to a Mixture-of-Experts.")
    sft: SftConfig = Field(SftConfig(), description=(
        "Supervised fine-tuning of the Mixture-of-Experts, and of the baseline where that says nothing else."))
    merge: MergeConfig = Field(MergeConfig(), description="From the experts to one dense model.")
    generate: GenerateConfig = Field(GenerateConfig(), description="Answers of every model to the benchmarks' problems.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Benchmarks and grading.")
    checks: ChecksConfig = Field(ChecksConfig(), description="What a run looks out for, and whether that stops it.")
    registry: RegistryConfig = Field(RegistryConfig(), description="The merged model in MLflow's registry.")

    @property
    def prompt_style(self) -> PromptStyle:
        """The form in which tuned models are asked: that of generate, or the one they were tuned in."""
        return self.data.template if self.generate.prompt_style == "auto" else self.generate.prompt_style

    @model_validator(mode="after")
    def _sections_fit(self) -> "Recipe":
        if self.merge.method == "shared_only" and not self.upcycle.shared_expert:
            raise ValueError("merge.method is shared_only, but upcycle.shared_expert is false: there is no shared expert")
        if self.merge.export_adapter and self.upcycle.expert_rank is None:
            raise ValueError(
                "merge.export_adapter is true, but upcycle.expert_rank is empty: only low-rank experts merge to an adapter")
        if self.upcycle.groups is not None and self.evaluate.lm_eval_tasks:
            raise ValueError(
                f"upcycle.groups is {self.upcycle.groups}, and evaluate.lm_eval_tasks is not empty: groups are chosen by the "
                "prompt, and lm-eval does not say what the prompt is. Empty one of them; the merged model can be evaluated "
                "by itself (xft evaluate)")
        return self
