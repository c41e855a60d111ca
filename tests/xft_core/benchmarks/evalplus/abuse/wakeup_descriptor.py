"""Makes the interpreter itself write into the channel: at every signal, and in its fault report."""
import faulthandler
import signal


def f(x):
    for descriptor in range(3, 40):
        try:
            signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
            faulthandler.register(signal.SIGUSR1, descriptor, all_threads=True)
            signal.raise_signal(signal.SIGALRM)
            signal.raise_signal(signal.SIGUSR1)
        except (OSError, ValueError):
            pass
    return None
