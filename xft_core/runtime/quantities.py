"""Readable sizes, parameter counts, durations and differences. A nonzero value is never shown as zero."""

ROUNDING = 1e-12  # smaller values are rounding errors of float sums


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
    """``value`` with this many decimals; if that would show a nonzero value as zero, with one significant digit."""
    text = f"{value:.{digits}f}"
    if float(text):
        return text
    return f"{value:.1g}" if abs(value) > ROUNDING else f"{0:.{digits}f}"


def signed(value: float, digits: int) -> str:
    """As ``fixed``, with a sign, for differences; zero is ``+0.0``."""
    text = fixed(value, digits)
    return text if text.startswith("-") else f"+{text}"


def told_apart(one: float, other: float, digits: int) -> tuple[str, str]:
    """Two numbers with this many decimals, or with as many as needed to show which is larger."""
    while one != other and digits < 15 and f"{one:.{digits}f}" == f"{other:.{digits}f}":
        digits += 1
    return f"{one:.{digits}f}", f"{other:.{digits}f}"


def _scaled(value: float, units: tuple[str, ...], digits: int) -> str:
    for unit in units:
        value /= 1000
        if float(f"{value:.{digits}f}") < 1000 or unit == units[-1]:
            break
    return f"{value:.{digits}f} {unit}"
