"""Takes its time to say what went wrong."""
import time

class E(Exception):
    def __str__(self):
        while True:
            try: time.sleep(30)
            except Exception: pass

def f(x):
    raise E
