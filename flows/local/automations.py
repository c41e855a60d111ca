"""Create the automations of deployments/automations/ on this machine's Prefect server: once, disabled, then left unchanged.

A file holds one Prefect automation, with names where Prefect needs ids: ``block_document: <type>/<name>`` and
``deployment: <flow>/<deployment>``. Missing blocks are created with an address where no server answers.
"""

from typing import TYPE_CHECKING, Any

import yaml

from flows.shipped import DEPLOYMENTS

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

AUTOMATIONS = DEPLOYMENTS / "automations"
TO_BE_SET = "http://127.0.0.1:9/put-your-address-here"


def apply_automations() -> None:
    """Create the automations that do not exist yet. Call it after the deployments are created."""
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.automations import AutomationCore

    with get_client(sync_client=True) as client:
        known = {item["name"] for item in client._client.post("/automations/filter", json={"limit": 200}).json()}
        for path in sorted(AUTOMATIONS.glob("*.yaml")):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            if content["name"] not in known:
                content["actions"] = [_with_ids(client, action) for action in content["actions"]]
                made = AutomationCore.model_validate(content)
                client._client.post("/automations/", json=made.model_dump(mode="json")).raise_for_status()


def _with_ids(client: "SyncPrefectClient", action: dict[str, Any]) -> dict[str, Any]:
    """Return the action with ids in place of names."""
    rest = {name: value for name, value in action.items() if name not in ("block_document", "deployment")}
    if name := action.get("block_document"):
        rest["block_document_id"] = _block(client, *name.split("/"))
    if name := action.get("deployment"):
        rest["deployment_id"] = str(client.read_deployment_by_name(name).id)
    return rest


def _block(client: "SyncPrefectClient", kind: str, name: str) -> str:
    """Return the id of a block, which is created if it does not exist."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.blocks.webhook import Webhook
    from prefect.exceptions import ObjectNotFound

    try:
        return str(client.read_block_document_by_name(name, kind).id)
    except ObjectNotFound:
        block: Any = Webhook(url=TO_BE_SET) if kind == "webhook" else CustomWebhookNotificationBlock(
            name=name, url=TO_BE_SET, json_data={"subject": "{{subject}}", "body": "{{body}}"})
        return str(block.save(name))
