"""Stop the work of a flow run: one event for each run, watched by everything that works for it."""

import threading
from collections import defaultdict

_stop_events: defaultdict[str, threading.Event] = defaultdict(threading.Event)




class RunStopped(Exception):
    """The pipeline run that this work belongs to was cancelled."""


def stop_event(flow_run_id: str) -> threading.Event:
    """Return the event to set in order to end that flow run's stages in this process."""
    return _stop_events[flow_run_id]


def stop_with(flow_run_id: str, other: str) -> None:
    """Make the flow run share the stop event of the ``other`` one, so that a comparison stops its variants."""
    _stop_events[flow_run_id] = _stop_events[other]
