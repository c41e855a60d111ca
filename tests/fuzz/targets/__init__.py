"""Every place where the tool reads files from others. A target feeds it one hostile input; an XftError is a correct response.

Targets call the readers in-process, not through the command line: starting Python takes a thousand times as long as reading.
Other tests check that the command lines turn XftError into ``error: ...`` and exit status 2.
"""

from tests.fuzz.targets import artifacts, data, models, object_store, settings  # noqa: F401  (they register themselves)
