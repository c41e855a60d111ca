"""A list whose iteration never ends."""
class Endless(list):
    def __iter__(self):
        while True:
            yield 1


def f(x):
    return Endless([1])
