"""Prefect tasks over ``xft_core``: one per stage. Only this package uses MLflow.

Importing this package sets where everything is kept, which must happen before Prefect reads its settings.
"""

from tasks.settings import set_environment_defaults

set_environment_defaults()
