"""One step of C code that no signal handler can interrupt."""
def f(x):
    return len(str(9 ** 9 ** 9)) and x + 1
