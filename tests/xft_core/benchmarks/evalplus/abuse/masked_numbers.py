"""numpy values without a value: masked, not a time, not a number. Some equal everything, some not even themselves."""
import numpy as np

VALUES = [np.ma.masked, np.ma.array([2], mask=[True]), np.datetime64("NaT"), np.rec.array([(1,)]), np.float64("nan"), np.void(b"")]


def f(x):
    return VALUES[x % len(VALUES)]
