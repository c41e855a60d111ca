"""Tags of variants. A variant is a pipeline run that belongs to a comparison, which it finds in its Prefect flow run's tags."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

COMPARISON, VARIANT, GROUP = "comparison:", "variant:", "group:"


class VariantOf(BaseModel):
    """``comparison``: the Prefect flow run that the variant belongs to; ``name`` and ``group`` as in recipe/grid.py."""

    model_config = ConfigDict(frozen=True)

    comparison: str
    name: str
    group: str

    def tags(self) -> list[str]:
        """Return the tags that hold these values."""
        return [f"{COMPARISON}{self.comparison}", f"{VARIANT}{self.name}", f"{GROUP}{self.group}"]


def variant_of(tags: Iterable[str]) -> VariantOf | None:
    """Return the variant that a flow run's tags name; None for a run outside a comparison."""
    found = {
        prefix: tag.removeprefix(prefix) for tag in tags for prefix in (COMPARISON, VARIANT, GROUP)
        if tag.startswith(prefix)}
    if len(found) < 3:
        return None
    return VariantOf(comparison=found[COMPARISON], name=found[VARIANT], group=found[GROUP])
