"""What automations can react to: Prefect events of this package. The run that one comes from is related to it.

    xft.run.completed       a pipeline run has finished
    xft.champion.changed    the alias champion of a registered model has moved
    xft.check.failed        a check of the recipe found something, while a stage was at work or at its end
    xft.data.changed        data that is watched differs from what it was

An event that Prefect does not take costs a line in the log, and nothing else.
"""

from typing import Any

from prefect.events import emit_event

from tasks.prefect_log import Logger, reason

RUN_COMPLETED, CHAMPION_CHANGED, CHECK_FAILED, DATA_CHANGED = (
    "xft.run.completed", "xft.champion.changed", "xft.check.failed", "xft.data.changed")


def emit(event: str, kind: str, name: str, payload: dict[str, Any], logger: Logger, **labels: str) -> None:
    """Send an event about ``xft.<kind>.<name>``. ``labels``: what automations may match beside that; ``payload``: JSON."""
    resource = {"prefect.resource.id": f"xft.{kind}.{name}", "prefect.resource.name": name}
    resource |= {f"xft.{label}": value for label, value in labels.items()}
    try:
        emit_event(event=event, resource=resource, payload=payload)
    except Exception as error:
        logger.warning("Prefect did not take the event %s; the work continues. %s", event, reason(error))
