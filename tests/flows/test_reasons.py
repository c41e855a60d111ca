"""A reason shared by several stages or variants is printed once."""

from types import SimpleNamespace
from typing import Any

import pytest
from prefect.states import Completed, Failed

from flows.compare import _failed
from flows.pipeline import PipelineFailed, raise_for_failures
from xft_core.errors import CheckpointError


class Finished:
    """A future that is already done, in the given state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def wait(self) -> None:
        """Return at once."""


def test_stages_with_one_reason_share_a_line() -> None:
    missing = CheckpointError("There is no model 'owner/none'.")
    roles = ("prepare", "upcycle", "sft_baseline", "generate_base_0", "generate_base_1")
    futures = {role: Finished(Failed(data=missing)) for role in roles}
    futures |= {"nll_base_0": Finished(Failed(message="another")), "report": Finished(Completed(data=None))}
    with pytest.raises(PipelineFailed) as error:
        raise_for_failures(SimpleNamespace(flow_run_id="none"), futures)  # type: ignore[arg-type]
    assert str(error.value).splitlines() == [
        "prepare, upcycle, sft-baseline, generate-base-0, generate-base-1: There is no model 'owner/none'.",
        "nll-base-0: another", "1 of 7 stages are finished; the same command continues from there."]


def test_variants_with_one_reason_share_a_line() -> None:
    assert _failed({"a": "no disk", "b": "no disk", "c": "no model"}, 4).splitlines()[1:] == ["a, b: no disk", "c: no model"]
