"""The recipe: all sections, and the fields of the whole run."""

from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from xft_core.recipe.sections.base import ExperimentName, PromptStyle, RecipeName, Section, Seed
from xft_core.recipe.sections.baseline import BaselineConfig
from xft_core.recipe.sections.checks import ChecksConfig
from xft_core.recipe.sections.data import DataConfig
from xft_core.recipe.sections.dpo import DpoConfig
from xft_core.recipe.sections.evaluate import EvaluateConfig
from xft_core.recipe.sections.export import ExportConfig
from xft_core.recipe.sections.generate import GenerateConfig
from xft_core.recipe.sections.merge import MergeConfig
from xft_core.recipe.sections.model import ModelConfig
from xft_core.recipe.sections.registry import RegistryConfig
from xft_core.recipe.sections.sft import SftConfig
from xft_core.recipe.sections.upcycle import UpcycleConfig


class Recipe(Section):
    """The complete description of one pipeline run."""

    added: ClassVar[frozenset[str]] = frozenset({"dpo", "export"})

    name: RecipeName = Field("demo", description=(
        "Name of the recipe: letters, digits, dot, dash, underscore. Runs and models are named after it."))
    seed: Seed = Field(0, description=(
        "Seed for all randomness in training and sampling: order, router, noise, samples. The choice of rows has its own "
        "seed, data.split_seed."))
    experiment: ExperimentName = Field("xft", description="MLflow experiment that the run belongs to.")
    check_fit: bool = Field(True, description=(
        "Before any work starts, reject a recipe that certainly needs more memory or disk than this machine has (see xft "
        "plan)."))
    model: ModelConfig = Field(ModelConfig(), description="The dense model that everything starts from.")
    data: DataConfig = Field(DataConfig(), description=(
        "Instruction data, and how it becomes training text, rows and held-out rows."))
    baseline: BaselineConfig = Field(BaselineConfig(), description="The control: plain SFT of the dense model.")
    upcycle: UpcycleConfig = Field(UpcycleConfig(), description="From the dense model to a Mixture-of-Experts.")
    sft: SftConfig = Field(SftConfig(), description=(
        "Supervised fine-tuning of the Mixture-of-Experts, and of the baseline unless its section differs."))
    merge: MergeConfig = Field(MergeConfig(), description="From the experts to one dense model.")
    dpo: DpoConfig = Field(DpoConfig(), description="From the merged model to one that prefers passing answers.")
    generate: GenerateConfig = Field(GenerateConfig(), description="Answers of every model to the benchmarks' problems.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Benchmarks and grading.")
    checks: ChecksConfig = Field(ChecksConfig(), description="Warning signs in a run, and which of them stop it.")
    export: ExportConfig = Field(ExportConfig(), description=(
        "Exports of the merged model to other formats, each measured like the original."))
    registry: RegistryConfig = Field(RegistryConfig(), description="The merged model in MLflow's registry.")

    @property
    def prompt_style(self) -> PromptStyle:
        """The prompt style for tuned models: the one in section generate, or the one they were tuned in."""
        return self.data.template if self.generate.prompt_style == "auto" else self.generate.prompt_style

    @property
    def moe_sft(self) -> SftConfig | None:
        """The fine-tuning of the Mixture-of-Experts; None if its experts are merged without further tuning. The share of the
        epochs spent on dense trainings before upcycling is already subtracted."""
        upcycle = self.upcycle
        if upcycle.experts_from == "base":
            return self.sft
        left = self.sft.epochs * (1 - upcycle.dense_share)
        return self.sft.model_copy(update={"epochs": left}) if left else None

    @property
    def trained_domains(self) -> list[str]:
        """The distinct domains of data.sources that are trained on, in source order, including those of replayed sources."""
        domains = self.data.source_domains
        return list(dict.fromkeys(domain for place, domain in enumerate(domains) if self.data.is_trained_on(place)))

    @property
    def has_rivals(self) -> bool:
        """Whether the run has models other than the base, SFT, MoE and merged models."""
        more = self.upcycle.experts_from == "branches" or self.merge.ensemble != "none" or bool(self.merge.wise)
        more = more or self.dpo.benchmark is not None
        return self.baseline.has_rivals or more

    @field_validator("export")
    @classmethod
    def _each_once(cls, export: ExportConfig) -> ExportConfig:
        if len(set(export.gguf)) < len(export.gguf):
            raise ValueError(f"export.gguf lists a quantization twice: {', '.join(export.gguf)}")
        return export

    @model_validator(mode="after")
    def _sections_fit(self) -> "Recipe":
        if self.merge.method == "shared_only" and not self.upcycle.shared_expert:
            raise ValueError("merge.method is shared_only, but upcycle.shared_expert is false: there is no shared expert")
        for source in self.data.sources:
            if unknown := [name for name in source.benchmarks if name not in self.evaluate.benchmarks]:
                raise ValueError(
                    f"data.sources: the benchmarks of {source.path} include {unknown[0]!r}, which is not in "
                    "evaluate.benchmarks: add it there")
        if self.merge.rows == "reserved" and not self.data.reserves_rows:
            raise ValueError(
                "merge.rows is reserved, but data.reserved_rows is 0. Give data.reserved_rows a number "
                "(128 or more can show small differences), or set merge.rows to held_in")
        searched = self.merge.search_over if self.merge.search != "none" else []
        if "shared_expert_weight" in searched and not self.upcycle.shared_expert:
            raise ValueError(
                "merge.search_over has shared_expert_weight, but upcycle.shared_expert is false: there is no shared expert. "
                "Set merge.search to none")
        if self.merge.export_adapter and self.upcycle.expert_rank is None:
            raise ValueError(
                "merge.export_adapter is true, but upcycle.expert_rank is empty: only low-rank experts merge into an adapter")
        if self.upcycle.groups is not None and self.evaluate.lm_eval_tasks:
            raise ValueError(
                f"upcycle.groups is {self.upcycle.groups}, and evaluate.lm_eval_tasks is not empty: the prompt determines the "
                "groups, and lm-eval does not identify the prompt. Empty one of the two; you can still evaluate the merged "
                "model separately (xft evaluate)")
        if self.upcycle.branches_by == "domain" and len(self.trained_domains) < self.upcycle.num_routed:
            raise ValueError(
                f"upcycle.branches_by is domain, but data.sources has {len(self.trained_domains)} domains to train on, fewer "
                f"than the {self.upcycle.num_routed} routed experts, each of which starts from its own branch: lower "
                "upcycle.num_experts, add sources, or set branches_by to random")
        if self.upcycle.mode == "fusion" and self.merge.method != "ewa":
            raise ValueError(
                f"merge.method is {self.merge.method}, but upcycle.mode is fusion, whose model is the mean of its experts: set "
                "merge.method to ewa")
        if self.upcycle.experts_from != "base" and self.sft.max_steps:
            raise ValueError(
                f"sft.max_steps is {self.sft.max_steps}, but upcycle.experts_from is {self.upcycle.experts_from}, which splits "
                "sft.epochs over several trainings: leave max_steps empty, and lower epochs")
        if self.dpo.benchmark is not None and self.dpo.benchmark in self.evaluate.benchmarks:
            raise ValueError(
                f"dpo.benchmark is {self.dpo.benchmark!r}, which is also in evaluate.benchmarks: the model would be measured "
                "on the problems that it was tuned on. Remove it from one of the two")
        if self.baseline.enabled and self.baseline.applied_adapter(self.sft) == "lora" and self.baseline.average != "none":
            raise ValueError(
                f"sft.adapter is lora, but baseline.average is {self.baseline.average}, and only the adapters of earlier "
                "steps are stored: set baseline.average to none, or baseline.adapter to none")
        if self.sft.adapter != "none" and self.upcycle.experts_from != "base":
            raise ValueError(
                f"sft.adapter is {self.sft.adapter}, but upcycle.experts_from is {self.upcycle.experts_from}, whose experts "
                "are weights of tuned dense models: set sft.adapter to none")
        if self.sft.expert_averaging and self.upcycle.mode == "fusion":
            raise ValueError("sft.expert_averaging is set, but upcycle.mode is fusion, which mixes all experts: set it to 0")
        if self.sft.merge_at == "best":
            if not self.data.reserves_rows:
                raise ValueError(
                    "sft.merge_at is best, but data.reserved_rows is 0: choosing needs rows that are neither trained on nor "
                    "reported. Reserve some rows, or set merge_at to last")
            if self.sft.average != "none" or self.moe_sft is None:
                raise ValueError("sft.merge_at is best, which chooses a training step of the Mixture-of-Experts: set "
                                 "sft.average to none, and upcycle.dense_share below 1")
        if self.sft.expert_averaging and self.upcycle.num_routed < 2:
            raise ValueError(
                f"sft.expert_averaging is {self.sft.expert_averaging:g}, but there is only one routed expert: raise "
                "upcycle.num_experts, or set sft.expert_averaging to 0")
        if self.seed + self.baseline.runs > 2**31:
            raise ValueError(f"seed is {self.seed}, too large for baseline.runs ({self.baseline.runs}): take a smaller one")
        if conflict := self.sft.conflict_with(self.upcycle):
            raise ValueError(conflict)
        return self
