"""Right only if /dev takes a file, as large as half the memory of the machine."""
import io


def f(x):
    with io.open("/dev/own", "wb") as stream:
        stream.write(bytes(10 ** 6))
    return x + 1
