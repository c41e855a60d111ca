"""Approval of champions by a user: the question, and the effect of the answer."""

from prefect import get_run_logger, task

from tasks import events
from tasks.execution.delivery import insist
from tasks.prefect_log import Logger
from tasks.prefect_page import show_markdown
from tasks.references import PipelineRun
from tasks.retry import RETRIED
from tasks.stopping import stop_event
from tasks.tracking import registry
from tasks.tracking.champion import Measurement
from tasks.tracking.client import explained


def question(proposal: registry.Proposal) -> str:
    """Return Markdown that compares the proposed version with the champion, in the metrics that decide."""
    now = "none" if proposal.champion is None else f"version {proposal.champion}"
    proposed, present = _cells(proposal.measured), _cells(proposal.champion_measured)
    measured = proposal.measured
    solved = "pass@1 ↑"
    if measured.benchmark:
        solved = f"pass@1 on all tests of {measured.benchmark}, {measured.problems} problems ↑"
    return (
        f"May version {proposal.version} of **{proposal.name}** become champion?\n\n"
        f"| | champion now: {now} | version {proposal.version} |\n|---|---:|---:|\n"
        f"| held-out loss, nats per response token ↓ | {present[0]} | {proposed[0]} |\n"
        f"| {solved} | {present[1]} | {proposed[1]} |\n\n"
        "For all other numbers, see the artifacts `comparison` and `report` of this run.\n")


@task(name="decide", task_run_name="decide", **RETRIED)
def decide(run: PipelineRun, proposal: registry.Proposal, approved: bool, remark: str) -> registry.Registration:
    """Move the alias champion, or record on the version why not."""
    logger, stop = get_run_logger(), stop_event(run.flow_run_id)

    def to_mlflow() -> registry.Registration:
        with explained():
            return registry.decide(run, proposal, approved, remark, logger)

    found = insist(to_mlflow, stop, logger)
    announce_champion(found, logger)
    text = f"{question(proposal)}\n**{'Approved' if approved else 'Rejected'}**{f': {remark}' if remark else ''}. {found}\n"
    show_markdown(run.flow_run_id, "approval", text, f"Champion of {proposal.name}", logger)
    return found


def announce_champion(registered: registry.Registration | None, logger: Logger) -> None:
    """Emit xft.champion.changed if the alias has just moved to this version."""
    if registered is None or registered.replaced is None:
        return
    events.emit(
        events.CHAMPION_CHANGED, "model", registered.name,
        {"version": registered.version, "replaced": registered.replaced or None, "why": registered.why,
         "model": f"models:/{registered.name}@champion"}, logger)


def _cells(measured: Measurement | None) -> tuple[str, str]:
    if measured is None:
        return "", ""
    solved = "" if measured.pass_at_1 is None else f"{100 * measured.pass_at_1:.1f} %"
    return f"{measured.held_out_nll:.4f}", solved
