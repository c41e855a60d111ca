"""Every place where the tool reads what others wrote. A target feeds it one hostile input; an XftError is a right answer.

The in-process readers are asked, not the command line: starting Python takes a thousand times as long as reading does.
That the command lines turn XftError into ``error: ...`` and exit status 2 is tested beside them.
"""

from tests.fuzz.targets import artifacts, data, models, object_store, settings  # noqa: F401  (they register themselves)
