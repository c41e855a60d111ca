"""The content of one run's artifacts, by role: manifests and small JSON files only. Torch is not imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from xft_core.recipe.labels import looks, path_forms, path_labels, unique_labels
from xft_core.recipe.sections import EvaluateConfig, Recipe
from xft_core.recipe.steps import (
    BASE_MODEL,
    DPO,
    MERGED,
    MERGED_MODEL,
    MOE_MODEL,
    PREPARED,
    TUNED,
    UPCYCLED,
    exports,
    is_measured,
    model_places,
)
from xft_core.reporting.names import benchmark_title, dense_name, file_stem
from xft_core.store.manifest import Manifest, read_manifest
from xft_core.store.results.base import Metrics, ResultFile
from xft_core.store.results.curve import CurvePoint, read_curve
from xft_core.store.results.dpo import DpoMetrics
from xft_core.store.results.merge import MergeMetrics
from xft_core.store.results.prepare import PrepareMetrics
from xft_core.store.results.sft import SftMetrics
from xft_core.store.results.upcycle import UpcycleMetrics

M = TypeVar("M", bound=Metrics)
F = TypeVar("F", bound=ResultFile)


@dataclass(frozen=True)
class Evidence:
    """The recipe and the available artifacts. Missing ones read as None or as empty."""

    recipe: Recipe
    directories: dict[str, Path]
    manifests: dict[str, Manifest]

    @classmethod
    def read(cls, recipe: Recipe, artifacts: Mapping[str, Path]) -> "Evidence":
        """Read the manifest of every artifact. Raises ArtifactError for one that has none."""
        directories = dict(sorted(artifacts.items()))
        return cls(recipe, directories, {role: read_manifest(path) for role, path in directories.items()})

    def metrics(self, role: str, kind: type[M]) -> M | None:
        """The numbers of a role's artifact, with None for those that are not finite; None if the role is missing. Raises
        ArtifactError for a value that is not a number."""
        return kind.of(self.manifests[role]).finite() if role in self.manifests else None

    def file(self, role: str, kind: type[F]) -> F | None:
        """A JSON file of a role's artifact; None if there is none. Raises ArtifactError for a broken file."""
        return kind.read(self.directories[role]) if role in self.directories else None

    def prepare(self) -> PrepareMetrics | None:
        """The counts of the prepared data's rows."""
        return self.metrics(PREPARED, PrepareMetrics)

    def upcycle(self) -> UpcycleMetrics | None:
        """The sizes of the base model and the Mixture-of-Experts."""
        return self.metrics(UPCYCLED, UpcycleMetrics)

    def sft(self, model: str) -> SftMetrics | None:
        """The fine-tuning of "sft" (the dense baseline) or "moe"."""
        return self.metrics(TUNED[model], SftMetrics)

    def models(self) -> list[str]:
        """The run's models, in the order of reports."""
        return list(model_places(self.recipe))

    def measured_models(self) -> list[str]:
        """The models that are measured on everything the recipe lists."""
        return [model for model in self.models() if is_measured(self.recipe, model)]

    def merge(self) -> MergeMetrics | None:
        """The metrics of the merge."""
        return self.metrics(MERGED, MergeMetrics)

    def dpo(self) -> DpoMetrics | None:
        """The merged model's tuning on preferences."""
        return self.metrics(DPO, DpoMetrics)

    def curve(self, role: str) -> list[CurvePoint]:
        """The points of a role's metrics.jsonl."""
        return read_curve(self.directories[role] / "metrics.jsonl") if role in self.directories else []

    def loss_curve(self, role: str) -> list[tuple[int, float]]:
        """Training loss over the steps of a training."""
        return [(point.step, point.values.loss) for point in self.curve(role) if point.values.loss is not None]

    def held_out_curve(self, role: str) -> list[tuple[int, float]]:
        """Held-out loss over the steps of a training, with those before and after it from the manifest."""
        points = {
            point.step: point.values.held_out_nll for point in self.curve(role) if point.values.held_out_nll is not None}
        if found := self.metrics(role, SftMetrics):
            ends = ((0, found.held_out_nll_before), (found.steps, found.held_out_nll))
            points |= {step: value for step, value in ends if value is not None}
        return sorted(points.items())

    def benchmarks(self) -> list[str]:
        """A title for each benchmark of the recipe, no two the same."""
        return benchmark_titles(self.recipe.evaluate.benchmarks)

    def model_name(self, model: str) -> str:
        """The display name of one of the run's models."""
        upcycle, method = self.recipe.upcycle, self.recipe.merge.method
        if quantization := exports(self.recipe).get(model):
            return f"merged, GGUF {quantization.upper()}"
        if model == DPO and (tuned := self.dpo()) and not tuned.pairs:
            return "merged, DPO without pairs"
        if model not in (BASE_MODEL, MOE_MODEL, MERGED_MODEL):
            return dense_name(model, self.recipe.baseline)
        xft = upcycle.shared_expert and upcycle.normalization == "xft"
        kind = "experts" if upcycle.expert_rank is None else f"experts of rank {upcycle.expert_rank}"
        kind += "" if upcycle.groups is None else f" in groups ({upcycle.groups})"
        return {
            BASE_MODEL: "base",
            MOE_MODEL: f"fusion of {upcycle.num_experts} experts" if upcycle.mode == "fusion" else (
                f"MoE, {upcycle.num_experts} {kind}, {upcycle.num_experts_per_tok} active"),
            MERGED_MODEL: f"{'XFT merged' if xft else 'merged'} ({method.replace('_', ' ')})",
        }[model]


@dataclass(frozen=True)
class MeasuredLabels:
    """Unique labels of everything that models are measured on, in the recipe's order."""

    benchmarks: list[str]
    held_out_data: list[str]
    lm_eval_tasks: list[str]


def measured_labels(config: EvaluateConfig) -> MeasuredLabels:
    """Labels of all that the section lists."""
    benchmarks = benchmark_titles(config.benchmarks)
    held_out = [f"NLL on {label}" for label in path_labels(config.held_out_data)]
    labels = iter(unique_labels([[label] for label in [*benchmarks, *held_out, *config.lm_eval_tasks]]))
    return MeasuredLabels(*([next(labels) for _ in kind] for kind in (benchmarks, held_out, config.lm_eval_tasks)))


def benchmark_titles(names: Sequence[str]) -> list[str]:
    """A unique title for each benchmark. Titles must differ in more than a "+", because ``mbpp+`` names the extended tests
    of mbpp."""
    return unique_labels([_title_forms(name) for name in names], alike=lambda title: looks(title).rstrip("+ "))


def _title_forms(name: str) -> list[str]:
    title, paths = benchmark_title(name), [file_stem(path) for path in path_forms(name)]
    return paths if title == paths[0] else [title, *(f"{title} ({path})" for path in paths)]




