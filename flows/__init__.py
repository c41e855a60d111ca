"""What users start: flows and the ``xft`` command.

Importing ``tasks`` first sets where Prefect keeps its files, before anything here imports Prefect.
"""

import tasks as tasks
