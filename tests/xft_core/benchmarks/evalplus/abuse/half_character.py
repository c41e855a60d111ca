"""A text that is not valid in UTF-8, and an exception with one."""
def f(x):
    if x == 1:
        raise ValueError("\ud800")
    return "\ud800"
