"""Creates files until it can create no more; right only if it gets a million."""
import io


def f(x):
    for number in range(10 ** 6):
        io.open(f"/tmp/{number}", "w").close()
    return x + 1
