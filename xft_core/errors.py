"""The errors that users see. Each message states the problem, the value, its location, and how to fix it.

These errors are caused by the user or the machine, and are shown without a stack trace. A bug is reported by an
``assert`` or a plain ``ValueError`` instead.
"""

from pydantic import ValidationError


class XftError(Exception):
    """A failure with a message for the user.

    ``may_pass`` tells an orchestrator whether the same work can succeed if it is started again unchanged.
    """

    may_pass = False


class RecipeError(XftError):
    """An invalid recipe or stage configuration."""


class DataError(XftError):
    """Instruction data or a benchmark file that cannot be used."""


class CheckpointError(XftError):
    """A model directory that is missing, truncated, of an unknown family or otherwise unusable."""


class HubUnavailable(XftError):
    """The Hub did not respond; the next attempt may succeed."""

    may_pass = True


class NotReady(XftError):
    """Several prerequisites of a run are missing; the message has a line for each."""


class ArtifactError(XftError):
    """A stage's output that is incomplete, or a location that it cannot be written to."""


class SandboxError(XftError):
    """Grading cannot be sandboxed on this machine."""


class DiskFullError(XftError):
    """No space was left while writing. Finished work is kept, and the same command continues from there."""


class OutOfMemory(XftError):
    """The memory of the machine or of its accelerator is too small for a stage with its configuration."""


class StageInterrupted(XftError):
    """A stage's process was ended from outside: a kill, a lost machine, too little memory. Starting again resumes it."""

    may_pass = True


class StageKilled(StageInterrupted):
    """A stage's process received SIGKILL, usually because memory ran out. Retry it unchanged once, not twice."""


def first_line(error: BaseException, longest: int = 300) -> str:
    """Summarize an error for the user: its first line, or its class if the message is empty; for pydantic errors, the field
    and the message."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")[:longest]
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]
