"""Stopping the work of a flow run: one event for each run, watched by everything that works for it."""

import threading
from collections import defaultdict

_stop_events: defaultdict[str, threading.Event] = defaultdict(threading.Event)




class RunStopped(Exception):
    """The pipeline run that this work belongs to was cancelled."""


def stop_event(flow_run_id: str) -> threading.Event:
    """Set it to end the stages of that flow run which are at work in this process."""
    return _stop_events[flow_run_id]


def stop_with(flow_run_id: str, other: str) -> None:
    """From now on the stop event of the flow run is that of the ``other`` one too: a comparison stops its variants."""
    _stop_events[flow_run_id] = _stop_events[other]
