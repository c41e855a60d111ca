"""Ask whether a run's model may become champion. The run is suspended until a user answers on its page."""

from prefect import get_run_logger
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from tasks.publishing.approval import decide, question
from tasks.publishing.pipeline import PipelineResult
from tasks.references import PipelineRun


class Approval(RunInput):
    """The answer that a user gives."""

    approve: bool = Field(False, description="On: the alias champion moves to this version. Off: it stays where it is.")
    remark: str = Field("", description="Your reason. It is kept on the version, in the tag xft.approval.")


def approved(run: PipelineRun, result: PipelineResult) -> PipelineResult:
    """Return the result after its proposal, if there is one, is decided.

    A suspended run occupies no worker. When it is resumed, it starts again from the beginning, finds every stage in the store,
    and reaches this point again. Prefect then returns the answer. A run that no worker would pick up again is not suspended:
    the version waits.
    """
    proposal = result.proposal
    if proposal is None:
        return result
    if deployment.id is None or flow_run.parent_flow_run_id:  # a subflow cannot be suspended
        get_run_logger().warning(
            "Version %d of %s waits for approval: run this recipe from a deployment, whose page asks, or move the alias "
            "by hand.",
            proposal.version, proposal.name)
        return result
    asked = Approval.with_initial_data(description=question(proposal))
    answer = suspend_flow_run(wait_for_input=asked, key=f"approval-{proposal.name}-{proposal.version}")
    found = decide(run, proposal, answer.approve, answer.remark)
    return result.model_copy(update={"registered": str(found), "proposal": None})
