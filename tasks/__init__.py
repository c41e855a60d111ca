"""Prefect tasks over ``xft_core``: one per stage, and the only place that knows MLflow.

Importing this package fixes where everything is kept, which must happen before Prefect reads its settings.
"""

from tasks.settings import set_environment_defaults

set_environment_defaults()
