"""Right only if it can hold more pipes than its user's quota, so that its neighbors' pipes hold next to nothing."""
import posix
import time


def f(x):
    reading, writing = posix.pipe()
    children = []
    for _ in range(30):
        children.append(posix.fork())
        if children[-1] == 0:
            pipes = []
            try:
                while True:
                    pipes.append(posix.pipe())
            except OSError:
                posix.write(writing, b"x" * len(pipes))
            time.sleep(60)
    time.sleep(0.5)
    held = len(posix.read(reading, 65536))
    for child in children:
        posix.kill(child, 9)
        posix.waitpid(child, 0)
    posix.close(reading)
    posix.close(writing)
    return x + 1 if held > 1500 else None
