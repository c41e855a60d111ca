"""``python -m xft_core.stages.torchrun_worker DIRECTORY``: one process of a stage, started by torchrun.py (files: see there).

The kinds of failure are "explained" (an XftError, with ``may_pass``), "lost" (another process ended, which is the real cause)
and "fault" (the message is a stack trace). The starting process shows only the failure that caused the others.
"""

import importlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from xft_core.errors import XftError, first_line
from xft_core.files.disk import disk_full_is_an_error, write_whole
from xft_core.recipe.steps import what_to_change
from xft_core.runtime.exit_codes import ExitCode
from xft_core.runtime.out_of_memory import out_of_memory_is_an_error
from xft_core.runtime.process import die_with_parent, quiet_libraries
from xft_core.stages.configs import STAGES
from xft_core.store.workspace import Workspace


def main() -> int:
    """Do this process's part of the work; returns the exit status."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no stack trace for an interrupt: the starting process explains it
    directory, number = Path(sys.argv[1]), int(os.environ["RANK"])
    quiet_libraries()
    logging.basicConfig(level=logging.INFO if number == 0 else logging.ERROR, format="%(message)s", stream=sys.stderr)
    try:
        _work(directory, number)
        return ExitCode.DONE
    except XftError as error:
        failure = {"kind": "explained", "message": str(error), "may_pass": error.may_pass}
    except Exception as error:
        failure = _unexplained(error)
    write_whole(directory / f"failure-{number}.json", json.dumps(failure | {"time": time.time()}))
    return ExitCode.FAILED


def _work(directory: Path, number: int) -> None:
    from xft_core.runtime.group import join_group

    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    config = STAGES[job["stage"]].model_validate(job["config"])
    join_group()
    with disk_full_is_an_error(config.output), out_of_memory_is_an_error(config.stage, what_to_change(config.stage)):
        metrics = importlib.import_module(config.implementation).run(config, Workspace(config.output))
        if number == 0:
            (directory / "metrics.json").write_text(json.dumps(metrics.flat()), encoding="utf-8")


def _unexplained(error: Exception) -> dict[str, Any]:
    from torch.distributed import DistError

    if isinstance(error, DistError) or "gloo" in str(error):  # gloo's errors have no separate class
        return {"kind": "lost", "message": first_line(error)}
    return {"kind": "fault", "message": traceback.format_exc().rstrip()}


if __name__ == "__main__":
    sys.exit(main())
