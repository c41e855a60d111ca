"""Switches the timer off and ignores every signal it can."""
import signal


def f(x):
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        pass
