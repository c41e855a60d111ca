"""Keeps data in the attributes of files; right only if 4 GB fit."""
import os


def f(x):
    for number in range(4000):
        name = f"/tmp/{number}"
        os.mkdir(name)
        for attribute in range(16):
            os.setxattr(name, f"user.{attribute}", bytes(60_000))
    return x + 1
