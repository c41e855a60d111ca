"""A text that is no text in UTF-8, and an exception with one."""
def f(x):
    if x == 1:
        raise ValueError("\ud800")
    return "\ud800"
