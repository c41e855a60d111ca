from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from tests.xft_core.sandbox.odd_programs import ODD
from xft_core.errors import SandboxError
from xft_core.sandbox.bubblewrap import Finished, PythonProgram, Resources, open_sandbox, python

PACKAGES = Path(numpy.__file__).parents[1]


def test_programs_that_are_odd_and_right_pass() -> None:
    try:
        sandbox = open_sandbox("bubblewrap")
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    assert len(ODD) >= 90

    def finish(program: str) -> Finished:
        # In a separate module: multiprocessing's spawn needs the file of __main__.
        # A program that does not end says where it waits.
        source = (f"import faulthandler, sys; sys.path.append({str(PACKAGES)!r}); faulthandler.dump_traceback_later(45)\n"
                  f"{program}\n"
                  "faulthandler.cancel_dump_traceback_later()")
        return sandbox.run(
            [str(python()), "-P", "-s", "-B", "main.py"], 60, files={"main.py": _guarded(source)},
            resources=replace(Resources(), memory_bytes=4 * 2**30))

    with ThreadPoolExecutor(2) as pool:
        finished = dict(zip(ODD, pool.map(finish, ODD.values()), strict=True))
    failed = {name: (done.status, done.stderr.decode()[-2000:]) for name, done in finished.items() if done.status != 0}
    assert failed == {}
    assert sandbox.run(PythonProgram("raise SystemExit(1)"), 30).status == 1  # so a failure would be noticed


def _guarded(source: str) -> str:
    """Return the source in a guard that runs it only as the main module, not when a spawned process imports it again."""
    return "if __name__ == '__main__':\n" + "\n".join(f"    {line}" for line in source.splitlines())


