"""Sizes, parameters, durations and differences as people read them. What is not zero never reads as zero."""

ROUNDING = 1e-12  # what is smaller comes from adding floats


def size(count: float) -> str:
    """Bytes, in units of 1000: ``512 bytes``, ``12.3 kB``, ``4.5 GB``."""
    if count < 999.5:
        return f"{count:.0f} bytes"
    return _scaled(count, ("kB", "MB", "GB", "TB", "PB"), 1)


def parameters(count: float) -> str:
    """Parameters of a model: ``512``, ``96.26 k``, ``2.27 M``, ``1.35 B``."""
    return f"{count:.0f}" if count < 999.5 else _scaled(count, ("k", "M", "B", "T"), 2)


def duration(seconds: float) -> str:
    """Seconds: ``<1 s``, ``5 s``, ``2 min``, ``2.0 h``, ``3.5 d``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else "<1 s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def fixed(value: float, digits: int) -> str:
    """``value`` with so many decimals; with one digit that says something where that would be zero and it is not."""
    text = f"{value:.{digits}f}"
    if float(text):
        return text
    return f"{value:.1g}" if abs(value) > ROUNDING else f"{0:.{digits}f}"


def signed(value: float, digits: int) -> str:
    """The same of a difference, with its sign; of none at all ``+0.0``."""
    text = fixed(value, digits)
    return text if text.startswith("-") else f"+{text}"


def told_apart(one: float, other: float, digits: int) -> tuple[str, str]:
    """Two numbers with so many decimals, or with as many as it takes to see which is larger."""
    while one != other and digits < 15 and f"{one:.{digits}f}" == f"{other:.{digits}f}":
        digits += 1
    return f"{one:.{digits}f}", f"{other:.{digits}f}"


def _scaled(value: float, units: tuple[str, ...], digits: int) -> str:
    for unit in units:
        value /= 1000
        if float(f"{value:.{digits}f}") < 1000 or unit == units[-1]:
            break
    return f"{value:.{digits}f} {unit}"
