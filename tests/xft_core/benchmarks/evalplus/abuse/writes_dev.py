"""Right only if /dev accepts a file, which could grow to half of the machine's memory."""
import io


def f(x):
    with io.open("/dev/own", "wb") as stream:
        stream.write(bytes(10 ** 6))
    return x + 1
