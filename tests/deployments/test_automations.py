"""The shipped automations, validated with Prefect's own models: every key of each file is read, and all automations are off."""

from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore

from flows.local.automations import AUTOMATIONS
from tests.deployments.test_prefect_yaml import DEPLOYMENTS, flow_of

FILES = sorted(AUTOMATIONS.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_an_automation_is_off_and_names_what_is_there(path: Any) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for action in content["actions"]:
        if block := action.pop("block_document", None):
            assert block in ("custom-webhook/xft-notifications", "webhook/xft-webhook")
            action["block_document_id"] = str(uuid4())
        if name := action.pop("deployment", None):
            flow, _, deployment = name.partition("/")
            known = next(item for item in DEPLOYMENTS if item["name"] == deployment)
            assert flow_of(known).name == flow
            action["deployment_id"] = str(uuid4())
    read = AutomationCore.model_validate(content)
    assert read.enabled is False
    assert not content.keys() - AutomationCore.model_fields.keys()
    assert not content["trigger"].keys() - type(read.trigger).model_fields.keys()
