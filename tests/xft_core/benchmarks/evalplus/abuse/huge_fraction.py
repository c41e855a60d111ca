"""A fraction whose reduction takes minutes, but that is never reduced here."""
from fractions import Fraction

def f(x):
    made = Fraction(1, 3)
    made._numerator, made._denominator = int("f" * 800_000, 16), int("e" * 799_999 + "1", 16)
    return made
