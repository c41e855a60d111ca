"""``xft store {ls,verify,gc}``: list, verify and clean the store."""

import time
from argparse import Namespace
from collections.abc import Sequence

from tasks.home import sweep_home
from tasks.object_store import upkeep
from tasks.settings import settings
from xft_core.runtime.quantities import duration, size
from xft_core.runtime.terminal import columns


def run(options: Namespace) -> int:
    """Run the action; returns the exit status: 1 if ``verify`` found damage. Raises XftError."""
    sweep_home(settings())
    return {"ls": _list, "verify": _verify, "gc": _gc}[options.action](options)


def _list(options: Namespace) -> int:
    found = upkeep.remote_artifacts(upkeep.bucket_in_force()) if options.s3 else upkeep.local_artifacts()
    rows = [(item.stage, item.key, size(item.size), _age(item.created), item.made_by) for item in found]
    _table(("stage", "key", "size", "age", "made by"), rows, right=(2, 3))
    print(f"{len(found)} artifacts, {size(sum(item.size for item in found))}, in {_where(options)}")
    return 0


def _verify(options: Namespace) -> int:
    checked = upkeep.verify_remote(upkeep.bucket_in_force()) if options.s3 else upkeep.verify_local()
    total = damaged = 0
    for name, problem in checked:
        total, damaged = total + 1, damaged + (problem is not None)
        print(f"{'damaged' if problem else 'intact':8} {name}{': ' + problem if problem else ''}", flush=True)
    print(f"{total - damaged} of {total} artifacts are intact, in {_where(options)}")
    if damaged:
        print("The next run that needs a damaged artifact rebuilds it.")
    return 1 if damaged else 0


def _gc(options: Namespace) -> int:
    found = (upkeep.garbage_remote(upkeep.bucket_in_force(), options.days) if options.s3
             else upkeep.garbage_local(options.days))
    _table(("what", "size", "why"), [(item.what, size(item.size), item.why) for item in found], right=(1,))
    total = size(sum(item.size for item in found))
    if options.yes:
        for item in found:
            item.remove()
        print(f"Removed {len(found)}, {total}, from {_where(options)}")
    else:
        print(f"{len(found)} to remove, {total}, in {_where(options)}." + (" Nothing was changed: add --yes." if found else ""))
    return 0


def _where(options: Namespace) -> str:
    return str(settings().store if options.s3 else settings().artifacts)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[int, ...]) -> None:
    if not rows:
        return
    print(columns(header, rows, right))


def _age(created: float) -> str:
    return duration(max(0.0, time.time() - created))
