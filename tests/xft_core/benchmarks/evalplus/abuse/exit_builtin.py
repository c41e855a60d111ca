"""The interactive way out."""
def f(x):
    exit()
