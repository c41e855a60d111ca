"""Installs its own alarm, and sleeps through every limit."""
import signal, time

def f(x):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(1)
    return x + 1
