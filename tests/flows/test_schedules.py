"""Prefect's server creates the runs of a schedule. With some versions of its libraries this fails, and only its log says so."""

import os
from datetime import timedelta

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import IntervalSchedule


def test_a_schedule_makes_runs(prefect_api: str) -> None:
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow_from_name("scheduled")
        schedule = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=1)), active=True)
        deployment_id = client.create_deployment(flow_id, "hourly", schedules=[schedule])
    name, _, password = os.environ["PREFECT_API_AUTH_STRING"].partition(":")
    secret = (name, password)
    httpx.post(f"{prefect_api}/deployments/{deployment_id}/schedule", json={}, auth=secret).raise_for_status()
    query = {"deployments": {"id": {"any_": [str(deployment_id)]}}}
    assert httpx.post(f"{prefect_api}/flow_runs/count", json=query, auth=secret).json() > 0
