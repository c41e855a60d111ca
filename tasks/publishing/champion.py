"""A champion that changed, told to whoever listens."""

from tasks import events
from tasks.prefect_log import Logger
from tasks.tracking.registry import Registration


def announce(registered: Registration | None, logger: Logger) -> None:
    """Emit xft.champion.changed if the alias has just moved to this version."""
    if registered is None or registered.replaced is None:
        return
    events.emit(
        events.CHAMPION_CHANGED, "model", registered.name,
        {"version": registered.version, "replaced": registered.replaced or None, "why": registered.why,
         "model": f"models:/{registered.name}@champion"}, logger)
