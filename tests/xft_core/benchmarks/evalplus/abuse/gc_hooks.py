"""Changes the value to be sent whenever garbage is collected."""
import gc

def hook(phase, info):
    for found in gc.get_objects():
        if type(found) is dict and "digest" in found:
            found["digest"] = "0" * 64

gc.set_threshold(1)
gc.callbacks.append(hook)

def f(x):
    return [x]
