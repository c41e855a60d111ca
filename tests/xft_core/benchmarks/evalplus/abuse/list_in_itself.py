"""A list that contains itself."""
def f(x):
    items = []
    items.append(items)
    return items
