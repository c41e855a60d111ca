"""The program that runs a task's grader in the sandbox: its ``execute`` or its ``judge``. It is passed to Python as text and
imports nothing from this package.

stdin    one JSON object: {"grader": its source, "function": "execute" or "judge", "problem": fields, "seconds": processor time,
         "packages": a directory, and "answer" (execute) or "output" (judge), "is_json": whether output is JSON}
stdout   the function's value as JSON, in one line

Exit status: 0; 3 if the answer failed (execute raised; the last line of stderr is the error); 4 if the grader failed.
"""

import contextlib
import json
import os
import resource
import sys
from typing import Any

ANSWER_FAILED, GRADER_FAILED = 3, 4


def main() -> None:
    """Run one function, and write its return value."""
    job = json.load(sys.stdin)
    seconds = int(job["seconds"] + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    sys.path.append(job["packages"])
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # printed text is not a result
    space: dict[str, Any] = {"__name__": "grader"}
    try:
        exec(compile(job["grader"], "grader.py", "exec"), space)
        value = judged(space, job) if job["function"] == "judge" else executed(space, job)
    except SystemExit:
        raise
    except BaseException as error:
        fail(GRADER_FAILED, f"grader.py: {type(error).__name__}: {error}")
    channel.write(json.dumps(value) + "\n")
    channel.flush()
    os._exit(0)


def executed(space: "dict[str, Any]", job: "dict[str, Any]") -> Any:
    """The return value of the grader's execute."""
    try:
        return {"output": json.loads(json.dumps(space["execute"](job["problem"], job["answer"])))}
    except BaseException as error:
        fail(ANSWER_FAILED, f"{type(error).__name__}: {error}")


def judged(space: "dict[str, Any]", job: "dict[str, Any]") -> "dict[str, Any]":
    """The verdict."""
    output = job["output"]
    if job["is_json"]:
        try:
            output = json.loads(output)["output"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"base": False, "plus": False, "score": 0.0, "detail": "what the answer's program returned is no JSON"}
    found = space["judge"](job["problem"], output)
    found = found if isinstance(found, dict) else {"base": found}
    base = bool(found["base"])
    score = None if found.get("score") is None else float(found["score"])
    if score is not None and not 0 <= score <= 1:
        raise ValueError(f"the score {score} is not between 0 and 1")
    return {"base": base, "plus": bool(found.get("plus", base)) and base, "score": score,
            "detail": str(found.get("detail", ""))}


def fail(status: int, message: str) -> Any:
    """Exit, with the message as the last line on stderr."""
    with contextlib.suppress(Exception):
        sys.stderr.write(message.replace("\n", " ")[:1000] + "\n")
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
