"""Fills shared mappings and releases their pages, so that they do not count as its own; right only if 6 GB fit."""
import mmap


def f(x):
    kept = []
    for _ in range(384):
        kept.append(mmap.mmap(-1, 2 ** 24))
        kept[-1].write(bytes(2 ** 24))
        kept[-1].madvise(mmap.MADV_DONTNEED)
    return x + 1
