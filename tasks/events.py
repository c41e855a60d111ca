"""Prefect events that automations can react to. Each event has the run that sent it as a related resource.

    xft.run.completed       a pipeline run has finished
    xft.champion.changed    the alias champion of a registered model has moved
    xft.check.failed        a check of the recipe found a problem, during a stage or at its end
    xft.data.changed        watched data has changed

An event that Prefect does not accept only adds a line to the log.
"""

from typing import Any

from prefect.events import emit_event

from tasks.prefect_log import Logger, reason

RUN_COMPLETED, CHAMPION_CHANGED, CHECK_FAILED, DATA_CHANGED = (
    "xft.run.completed", "xft.champion.changed", "xft.check.failed", "xft.data.changed")


def emit(event: str, kind: str, name: str, payload: dict[str, Any], logger: Logger, **labels: str) -> None:
    """Send an event about ``xft.<kind>.<name>``. ``labels``: further values that automations can match. ``payload``: JSON."""
    resource = {"prefect.resource.id": f"xft.{kind}.{name}", "prefect.resource.name": name}
    resource |= {f"xft.{label}": value for label, value in labels.items()}
    try:
        emit_event(event=event, resource=resource, payload=payload)
    except Exception as error:
        logger.warning("Prefect did not accept the event %s; the run continues. %s", event, reason(error))
