"""Exits before it gets any input."""
import os

os._exit(0)
