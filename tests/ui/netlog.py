"""Chromium's own record of its network stack (``--log-net-log``): every name that it looked up and every address that it
connected to, for pages, workers, websockets, prefetches and the browser's own requests. Unlike Playwright's list of requests,
it misses nothing that leaves the machine. Chromium's own requests are excluded by name."""

import ipaddress
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOOKUPS = ("HOST_RESOLVER_MANAGER_REQUEST", "HOST_RESOLVER_MANAGER_JOB", "HOST_RESOLVER_DNS_TASK", "HOST_RESOLVER_SYSTEM_TASK")
CONNECTIONS = ("TCP_CONNECT_ATTEMPT", "UDP_CONNECT", "UDP_BYTES_SENT", "QUIC_SESSION")
# Chromium's own requests on any page: updates, sign-in, autofill, a spelling dictionary, and a check for IPv6. None of our
# pages uses these names.
ERRANDS = re.compile(
    r"(https?://)?(update|content-autofill|optimizationguide-pa|safebrowsing|clients2|android\.clients)\.(googleapis|google)\.com"
    r"|(https?://)?(redirector\.gvt1|accounts\.google|www\.google)\.com|\[2001:4860:4860::8888\]:\d+|.*:53")
OWN_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


def left_the_machine(record: Path) -> set[str]:
    """Return names and addresses outside this machine in a complete record. Chromium must have ended."""
    content = json.loads(record.read_text(encoding="utf-8"))
    types = {number: name for name, number in content["constants"]["logEventTypes"].items()}
    seen = {places for event in content["events"] for places in _places(types[event["type"]], event.get("params") or {})}
    assert any(place.startswith("127.0.0.1:") for place in seen), "the record is empty"
    return {place for place in seen if not (_is_here(place) or ERRANDS.fullmatch(place))}


def _places(kind: str, params: dict[str, Any]) -> Iterator[str]:
    names = ("host",) if kind in LOOKUPS else ("address", "peer_address") if kind in CONNECTIONS else ()
    for name in names:
        if value := params.get(name):
            yield str(value)


def _is_here(place: str) -> bool:
    host = place.rpartition("://")[2]
    if host in OWN_NAMES:
        return True
    host = host.rpartition(":")[0] or host
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in OWN_NAMES
