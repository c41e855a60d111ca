"""Numbers of numpy that are there and are not: masked, no time, no number. Some equal everything, some not even themselves."""
import numpy as np

VALUES = [np.ma.masked, np.ma.array([2], mask=[True]), np.datetime64("NaT"), np.rec.array([(1,)]), np.float64("nan"), np.void(b"")]


def f(x):
    return VALUES[x % len(VALUES)]
