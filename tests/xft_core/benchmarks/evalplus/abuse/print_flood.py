"""Prints without end."""
def f(x):
    while True:
        print("x" * 10 ** 6)
