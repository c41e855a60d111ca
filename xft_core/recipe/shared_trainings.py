"""Seeds so close that their soups share trainings. A soup at seed s has the trainings of the seeds s to s + runs - 1, so soups
at seeds 0 and 1 differ in one training, and intervals over such seeds are too narrow."""

import itertools
from collections.abc import Iterable, Sequence

from xft_core.recipe.grid import Variant
from xft_core.recipe.sections import Recipe
from xft_core.recipe.study import ArmRun, StudyConfig

IN_A_SOUP = "_soup"  # part of the names of soups and of the models made from them


def shared_by_arms(study: StudyConfig, runs: Iterable[ArmRun], variants: Iterable[Variant]) -> list[str]:
    """A sentence for each arm of a study that is a soup and shares trainings between its seeds. ``runs``, ``variants``: the
    reported runs."""
    sizes = {variant.name: variant.recipe.baseline.runs for variant in variants}
    of_arms = {run.arm: sizes[run.variant] for run in runs if IN_A_SOUP in study.model_of(run.arm, run.choice)}
    found = {arm: shared_trainings(study.seeds, size) for arm, size in of_arms.items()}
    return [f"Arm `{arm}`: {sentence}" for arm, sentence in found.items() if sentence]


def shared_by_variants(variants: Iterable[Variant]) -> list[str]:
    """The same for a comparison: a sentence for each size of soup."""
    seeds: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for variant in variants:
        seeds.setdefault(variant.group, []).append(variant.recipe.seed)
        sizes[variant.group] = soup_size(variant.recipe)
    sentences = [shared_trainings(found, sizes[group]) for group, found in seeds.items()]
    return list(dict.fromkeys(sentence for sentence in sentences if sentence))


def soup_size(recipe: Recipe) -> int:
    """The number of trainings in a recipe's soup; 1 for none."""
    return recipe.baseline.runs if recipe.baseline.enabled else 1


def shared_trainings(seeds: Sequence[int], size: int) -> str | None:
    """The sentence for one soup of ``size`` trainings; None if no two of its seeds share one."""
    in_order = sorted(set(seeds))
    close = next((pair for pair in itertools.pairwise(in_order) if pair[1] - pair[0] < size), None)
    if close is None:
        return None
    apart = ", ".join(str(in_order[0] + size * number) for number in range(len(in_order)))
    return (f"the soups at seeds {close[0]} and {close[1]} share {size - (close[1] - close[0])} of their {size} trainings, so "
            f"intervals over these seeds are too narrow. Take seeds at least {size} apart: {apart}.")
