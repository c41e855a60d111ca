"""Word problems whose answer is a number with a unit, checked by dimension and by size (with pint).

Fields of a row: ``quantity``, the right one as text ("2.5 km/h"); ``tolerance`` (optional), relative, 0.01 by default. The last
number of the answer counts, with the unit that follows it: 2500 m/h is as right as 2.5 km/h, 2.5 alone and 2.5 kg are wrong.
"""

import re
from typing import Any

TOLERANCE = 0.01
NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,2})?")
UNIT = re.compile(r"[ \t]*([A-Za-zµΩ°%][A-Za-zµΩ°%0-9*/^ ²³·()-]*)?")
LONGEST_UNIT = 60


def judge(problem: dict[str, Any], output: Any) -> Any:
    """Whether the answer's last quantity is the right one."""
    import pint

    units: Any = pint.UnitRegistry(autoconvert_offset_to_baseunit=True)
    numbers = [number for number in NUMBER.finditer(output) if not is_exponent(output, number.start())]
    if not numbers:
        return {"base": False, "detail": "the answer has no number"}
    value = float(numbers[-1][0].replace(",", ""))
    following = UNIT.match(output, numbers[-1].end())
    unit = following[1] or "" if following else ""
    try:
        expected = parsed(units, problem["quantity"])
        found = longest(units, value, unit)
    except (pint.errors.PintError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        return {"base": False, "detail": f"{value:g} {unit!r} is no quantity: {error}"}
    if found.dimensionality != expected.dimensionality:
        return {"base": False, "detail": f"{found} has another dimension than {expected}"}
    size, right = found.to_base_units().magnitude, expected.to_base_units().magnitude
    tolerance = problem.get("tolerance", TOLERANCE)
    passed = abs(size - right) <= tolerance * abs(right) + 1e-12
    return {"base": passed, "detail": "" if passed else f"{found} instead of {expected}"}


def is_exponent(text: Any, place: Any) -> Any:
    """Whether the number at a place is the power of a unit."""
    return place > 0 and (text[place - 1] in "^*" or text[place - 1].isalpha())


def parsed(units: Any, text: Any) -> Any:
    """A quantity from text: a number and a unit."""
    number = NUMBER.match(text)
    if number is None:
        raise ValueError(f"{text!r} does not begin with a number")
    return units.Quantity(float(number[0]), units.parse_units(text[number.end():].strip()))


def longest(units: Any, value: Any, text: Any) -> Any:
    """The quantity of the longest beginning of a text that is a unit: prose may follow it."""
    words = text[:LONGEST_UNIT].replace("²", "**2").replace("³", "**3").replace("^", "**").replace("·", "*").split(" ")
    for count in range(len(words), 0, -1):
        name = " ".join(words[:count]).strip().rstrip(".,;*/(")
        if not name:
            break
        try:
            return units.Quantity(value, units.parse_units(name))
        except Exception:  # pint raises many kinds for what is no unit
            continue
    return units.Quantity(value, "")
