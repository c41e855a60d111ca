"""``python -m xft_core.distributed.worker DIRECTORY``: one process of a stage; launch.py starts it and describes the files."""

import importlib
import json
import logging
import os
import sys
from pathlib import Path

from xft_core.artifacts import Workspace, disk_full_is_an_error
from xft_core.errors import XftError, explained
from xft_core.process import die_with_parent, quiet_libraries
from xft_core.stages import STAGES

EXIT_EXPLAINED = 2


def main() -> int:
    """Take part in the work; returns the exit status."""
    die_with_parent()
    directory, number = Path(sys.argv[1]), int(os.environ["RANK"])
    quiet_libraries()
    logging.basicConfig(level=logging.INFO if number == 0 else logging.ERROR, format="%(message)s", stream=sys.stderr)
    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    config = STAGES[job["stage"]].model_validate(job["config"])
    try:
        from xft_core.distributed.group import join_group, leave_group

        join_group()
        with disk_full_is_an_error(config.output):
            metrics = importlib.import_module(config.implementation).run(config, Workspace(config.output))
            leave_group()
            if number == 0:
                (directory / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        return 0
    except Exception as error:
        explanation = error if isinstance(error, XftError) else explained(error, config.stage)
        if explanation is None:
            raise
        failure = {"message": str(explanation), "may_pass": explanation.may_pass}
        temporary = directory / f"failure-{number}.tmp"
        temporary.write_text(json.dumps(failure), encoding="utf-8")
        temporary.replace(directory / f"failure-{number}.json")
        return EXIT_EXPLAINED


if __name__ == "__main__":
    sys.exit(main())
