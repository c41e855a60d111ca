"""A number in a few characters that fills any memory when written out."""
from decimal import Decimal

def f(x):
    return [Decimal("1e999999999"), Decimal("1e-999999999"), Decimal("sNaN"), complex(float("nan"), x)]
