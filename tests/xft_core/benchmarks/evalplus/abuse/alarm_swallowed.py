"""Catches the time limit's exception and goes on."""
def f(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
