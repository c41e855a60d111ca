"""A subclass of a built-in type that answers each question differently: iteration, index, hash."""


class Lying(list):
    def __iter__(self):
        return iter([True])

    def __len__(self):
        return 1

    def __eq__(self, other):
        return True

    __hash__ = None
    __class__ = property(lambda self: bool)

    def __getitem__(self, place):
        return True

    def __reduce_ex__(self, protocol):
        return (bool, (True,))


def f(x):
    return Lying([x])
