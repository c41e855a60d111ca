"""Starts threads endlessly; right only if it gets 1,000."""
import threading
import time


def f(x):
    for _ in range(1000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return x + 1
