"""Publish in a process whose HF_ENDPOINT is the test's Hub: ``send_to_hub.py DIRECTORY REPOSITORY public|private``."""

import sys
import tempfile
import threading
from pathlib import Path

from tasks.publishing.destinations import Hub
from tasks.publishing.release import check
from xft_core.errors import XftError
from xft_core.files.digests import model_files

directory, repository, kind = sys.argv[1:]
files = {path.name: path for path in model_files(Path(directory))} | {"README.md": Path(directory) / "README.md"}
try:
    hub = Hub(repository, kind == "public", None)
    place = hub.send(files, "a model", threading.Event())
    with tempfile.TemporaryDirectory() as back:
        hub.receive(place, list(files), Path(back), threading.Event())
        check(files, Path(directory), Path(back))
    print(place)
except XftError as error:
    print(type(error).__name__, error)
