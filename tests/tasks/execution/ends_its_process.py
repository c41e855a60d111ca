"""A module that cannot be imported: the process that tries ends."""

import os

os._exit(1)
