"""Makes files until there are no more; right only if there can be a million."""
import io


def f(x):
    for number in range(10 ** 6):
        io.open(f"/tmp/{number}", "w").close()
    return x + 1
