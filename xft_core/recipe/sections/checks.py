"""The recipe section checks."""

from typing import ClassVar

from pydantic import Field

from xft_core.recipe.sections.base import Reaction, Section


class ChecksConfig(Section):
    """Warning signs in a run. The report names each one found. Each can also stop the run, which keeps all finished stages. A
    NaN loss always stops the run."""

    added: ClassVar[frozenset[str]] = frozenset({"missing_material"})

    diverging_loss: Reaction = Field("report", description=(
        "The training loss has risen far above its lowest point: by 30% of it and by at least 0.3 nats, averaged over five "
        "points of the curve. report: continue and note it in the report; stop: end the training."))
    dead_experts: Reaction = Field("report", description=(
        "In some layer, a routed expert received less than 1% of the tokens for dead_expert_steps consecutive steps. report "
        "or stop."))
    dead_expert_steps: int = Field(100, ge=1, description="Optimizer steps after which an unused expert counts as dead.")
    unmoved_coefficients: Reaction = Field("report", description=(
        "The learned mixing coefficients moved by less than 0.01 everywhere, so the result is practically uniform mixing. "
        "report, or stop before merging."))
    worse_than_uniform: Reaction = Field("report", description=(
        "Learned mixing has a higher held-out loss than uniform mixing. report, or stop before merging."))
    worse_than_base: Reaction = Field("report", description=(
        "The merged model has a higher held-out loss than the base model. report, or stop before answers are generated."))
    missing_material: Reaction = Field("report", description=(
        "An optional step had too little data: dpo found no problem with both a passing and a failing answer, or "
        "merge.cross_validation had fewer than 3 rows. report: skip the step and note it in the report; stop: end the run at "
        "that point."))
