"""The question whether a run's model may become champion: the run is suspended until a person answers in its page."""

from prefect import get_run_logger
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from tasks.publishing.approval import decide, question
from tasks.publishing.pipeline import PipelineResult
from tasks.references import PipelineRun


class Approval(RunInput):
    """What a person is asked for."""

    approve: bool = Field(False, description="On: the alias champion moves to this version. Off: it stays where it is.")
    remark: str = Field("", description="Why; kept on the version, in the tag xft.approval.")


def approved(run: PipelineRun, result: PipelineResult) -> PipelineResult:
    """The result once its proposal, if there is one, is decided.

    A suspended run holds no worker. When it is resumed it begins again, finds every stage in the store, and comes here again,
    where Prefect then hands over the answer. A run that no worker would take up again is not suspended: the version waits.
    """
    proposal = result.proposal
    if proposal is None:
        return result
    if deployment.id is None or flow_run.parent_flow_run_id:  # a subflow cannot be suspended
        get_run_logger().warning(
            "Version %d of %s waits for approval: run this recipe by a deployment, whose page asks, or move the alias by hand.",
            proposal.version, proposal.name)
        return result
    asked = Approval.with_initial_data(description=question(proposal))
    answer = suspend_flow_run(wait_for_input=asked, key=f"approval-{proposal.name}-{proposal.version}")
    found = decide(run, proposal, answer.approve, answer.remark)
    return result.model_copy(update={"registered": str(found), "proposal": None})
