"""Fills shared mappings and unmaps all but one page of each; right only if it can hold 6 GB in this way."""
import ctypes


def f(x):
    library = ctypes.CDLL(None)
    library.mmap.restype = ctypes.c_void_p
    size = 2 ** 24
    for _ in range(384):
        at = library.mmap(None, ctypes.c_size_t(size), 3, 0x21, -1, ctypes.c_long(0))
        ctypes.memset(at, 1, size)
        library.munmap(ctypes.c_void_p(at + 4096), ctypes.c_size_t(size - 4096))
    return x + 1
