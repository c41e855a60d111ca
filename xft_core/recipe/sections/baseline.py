"""The recipe's section baseline."""

from pydantic import Field

from xft_core.recipe.sections.base import Section
from xft_core.recipe.sections.sft import SftConfig


class BaselineConfig(Section):
    """The control: plain SFT of the dense model. Everything not named here is as in the section sft."""

    enabled: bool = Field(True, description="Train and evaluate the dense baseline too.")
    epochs: float | None = Field(None, gt=0, le=1000, description="Passes over the rows; empty: as in sft.")
    learning_rate: float | None = Field(None, gt=0, le=1, description="Peak learning rate; empty: as in sft.")
    warmup_steps: int | None = Field(None, ge=0, description="Warm-up steps; empty: as in sft.")

    def applied_to(self, sft: SftConfig) -> SftConfig:
        """The baseline's SFT configuration: ``sft`` with the fields set here, and no balance loss (a dense model
        has no router, so that field must not make two otherwise equal baselines differ)."""
        changes = {name: value for name, value in self.model_dump(exclude={"enabled"}).items() if value is not None}
        changes |= {"balance_loss_weight": 0.0, "balance_loss_reduction": "sum", "expert_learning_rate_factor": 1.0}
        return SftConfig(**(sft.model_dump() | changes))
