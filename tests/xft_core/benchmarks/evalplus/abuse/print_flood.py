"""Prints endlessly."""
def f(x):
    while True:
        print("x" * 10 ** 6)
