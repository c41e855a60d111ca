"""Reads address 0."""
import ctypes


def f(x):
    ctypes.string_at(0)
