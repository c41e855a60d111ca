"""Test a study's claims again from the raw losses: ``python -m performance.study.verdicts STUDY.yaml [--plots DIR]``.

Reads every row's loss from the file beside the study (NAME.losses.json, or ``--losses FILE``), without its runs or a store, and
prints means and claims. ``--plots`` writes ladder.png, the plot of the claims.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from performance.side_by_side import print_table
from xft_core.recipe.study import StudyConfig, load_study
from xft_core.reporting.study.ladder import Choice, Measured, StudyResult, judge
from xft_core.reporting.study.markdown import p_value_text
from xft_core.reporting.study.plots import draw_study


def main() -> None:
    """Read, test and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--losses", type=Path)
    parser.add_argument("--plots", type=Path, metavar="DIR")
    options = parser.parse_args()
    study, _ = load_study(options.study)
    result = result_of(study, options.losses or options.study.with_suffix(".losses.json"))
    print_table(["arm", "loss", "± over seeds", "seeds"], [
        [name, f"{arm.mean:.4f}", "-" if arm.spread is None else f"{arm.spread:.4f}", len(arm.losses)]
        for name, arm in result.arms.items() if arm.mean is not None])
    print_table(["claim", "difference", "95% interval", "p (Holm)", "verdict"], [
        [f"{number}. {rung.claim}", f"{rung.difference:+.4f}", f"{rung.low:+.4f} to {rung.high:+.4f}",
         p_value_text(rung.corrected), rung.verdict]
        for number, rung in enumerate(result.ladder, 1) if rung.difference is not None])
    if options.plots:
        draw_study(result, options.plots)


def result_of(study: StudyConfig, losses: Path) -> StudyResult:
    """The result of a study from its raw losses. What an arm chose, and the work of its training, are not in the file."""
    content = json.loads(losses.read_text(encoding="utf-8"))
    measured = {
        name: {int(seed): Measured(np.array(losses_R)) for seed, losses_R in seeds.items()}
        for name, seeds in content["losses"].items()}
    unknown = {name: [Choice(settings={}, reserved_loss=None)] for name in study.arms}
    return judge(study, measured, np.array(content["tokens"]), unknown)


if __name__ == "__main__":
    main()
