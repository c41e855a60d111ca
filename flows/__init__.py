"""What a person starts: flows and the ``xft`` command.

Importing ``tasks`` first fixes where Prefect keeps its files, before anything here imports Prefect.
"""

import tasks as tasks
