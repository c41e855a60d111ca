"""A list nested a hundred thousand levels deep."""
def f(x):
    items = []
    for _ in range(10 ** 5):
        items = [items]
    return items
