"""Catches the time limit's exception and continues."""
def f(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
