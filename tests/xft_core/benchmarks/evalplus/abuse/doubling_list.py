"""A list of thirty lists that is a billion items when written out."""
def f(x):
    items = [0]
    for _ in range(30):
        items = [items, items]
    return items
