"""Rows of the three tasks that ship: orders to JSON, questions to SQL, word problems with units. Everything follows from the
generator that is given."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karla", "Leo")
CITIES = ("Bonn", "Paris", "Oslo", "Rome", "Vienna", "Madrid", "Lyon", "Turin", "Basel", "Ghent")
ITEMS = ("green tea", "black tea", "coffee", "rice", "honey", "olive oil", "salt", "flour", "red lentils", "oats")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
CONTAINERS = ("boxes", "bags", "jars", "crates")

# The last two wordings of orders are in the test split alone.
ORDERS = (
    "Please send {quantity} {container} of {item} to {name} in {city}{by}.",
    "{name} from {city} orders {quantity} {container} of {item}{by}.",
    "{quantity} {container} of {item} for {name}, {city}{by}.",
    "I am {name}. I need {quantity} {container} of {item}{by}. I live in {city}.",
    "To {city}: {item}, {quantity} {container}{by}. The name is {name}.",
    "{name} wants {item}{by}, {quantity} {container}, sent to {city}.",
    "Can {name} in {city} have {quantity} {container} of {item}{by}?",
    "Send {item} to {city}{by}: {quantity} {container}. Ask for {name}.",
)
NEW_WORDINGS = 2
ORDER_SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "city", "item", "container", "quantity"],
    "properties": {
        "name": {"type": "string"}, "city": {"type": "string"}, "item": {"type": "string"},
        "container": {"enum": list(CONTAINERS)}, "quantity": {"type": "integer", "minimum": 1},
        "day": {"enum": list(DAYS)}}}

TABLE = "CREATE TABLE orders (name TEXT, city TEXT, item TEXT, quantity INTEGER, price REAL, day TEXT);"
# Question, query, whether the order of the rows counts.
QUERIES = (
    ("How many orders come from {city}?", "SELECT COUNT(*) FROM orders WHERE city = '{city}';", False),
    ("How many {item} did {name} order in all?",
     "SELECT SUM(quantity) FROM orders WHERE item = '{item}' AND name = '{name}';", False),
    ("List the items that {name} ordered, each once.", "SELECT DISTINCT item FROM orders WHERE name = '{name}';", False),
    ("Which names ordered more than {number} at once?", "SELECT name FROM orders WHERE quantity > {number};", False),
    ("What is the highest price in {city}?", "SELECT MAX(price) FROM orders WHERE city = '{city}';", False),
    ("List names and quantities, the largest quantity first, then by name.",
     "SELECT name, quantity FROM orders ORDER BY quantity DESC, name;", True),
    ("How many orders has each city?", "SELECT city, COUNT(*) FROM orders GROUP BY city;", False),
    ("What is the mean price of {item}?", "SELECT AVG(price) FROM orders WHERE item = '{item}';", False),
    ("List the cities of orders without a day.", "SELECT city FROM orders WHERE day IS NULL;", False),
    ("What do all orders of {name} cost together?",
     "SELECT SUM(quantity * price) FROM orders WHERE name = '{name}';", False),
)

# Question, the answer's number from the two given, its unit.
PROBLEMS: tuple[tuple[str, Callable[[int, int], float], str], ...] = (
    ("A train goes {a} km in {b} hours. How fast is it on average?", lambda a, b: a / b, "km/h"),
    ("A pump fills {a} liters in {b} minutes. What is its flow?", lambda a, b: a / b, "L/min"),
    ("A field is {a} m long and {b} m wide. What is its area?", lambda a, b: a * b, "m**2"),
    ("A lamp of {a} watts burns for {b} hours. How much energy does it use?", lambda a, b: a * b, "W*h"),
    ("A stone has a mass of {a} g and a volume of {b} mL. What is its density?", lambda a, b: a / b, "g/mL"),
    ("A cyclist rides {a} km/h for {b} hours. How far is that?", lambda a, b: a * b, "km"),
    ("A force of {a} N acts on a mass of {b} kg. What is the acceleration?", lambda a, b: a / b, "m/s**2"),
    ("A rope of {a} m is cut into {b} equal parts. How long is each?", lambda a, b: a / b, "m"),
)


def extraction_rows(rng: random.Random, count: int, test: bool) -> list[Row]:
    """Orders in words, and as JSON; a third has no day."""
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < count:
        record: dict[str, Any] = {
            "name": rng.choice(NAMES), "city": rng.choice(CITIES), "item": rng.choice(ITEMS),
            "container": rng.choice(CONTAINERS), "quantity": rng.randint(1, 60)}
        by = ""
        if rng.random() < 2 / 3:
            record["day"] = rng.choice(DAYS)
            by = f" by {record['day']}"
        place = rng.randrange(len(ORDERS) if test else len(ORDERS) - NEW_WORDINGS)
        instruction = f"Write the order as JSON: {ORDERS[place].format(**record, by=by)}"
        if instruction in seen:
            continue
        seen.add(instruction)
        row: Row = {"instruction": instruction, "response": json.dumps(record)}
        if test:
            wording = "new" if place >= len(ORDERS) - NEW_WORDINGS else "known"
            row = {"task_id": f"order/{len(rows)}", **row, "record": record, "schema": ORDER_SCHEMA, "wording": wording}
        rows.append(row)
    return rows


def sql_rows(rng: random.Random, count: int, test: bool) -> list[Row]:
    """Questions about a table of orders, and the query; each problem of the test has a table's rows of its own."""
    rows: list[Row] = []
    while len(rows) < count:
        question, query, ordered = rng.choice(QUERIES)
        orders = [
            (rng.choice(NAMES), rng.choice(CITIES), rng.choice(ITEMS), rng.randint(1, 9), rng.randint(2, 60) / 4,
             rng.choice((*DAYS, None))) for _ in range(8)]
        name, city, item = rng.choice(orders)[:3]
        given: dict[str, Any] = {"name": name, "city": city, "item": item, "number": rng.randint(2, 7)}
        row: Row = {
            "instruction": f"{TABLE}\n{question.format(**given)} Answer with one SQL query.", "response": query.format(**given)}
        if test:
            values = ",\n".join(
                f"({', '.join('NULL' if value is None else repr(value) for value in order)})" for order in orders)
            row = {"task_id": f"query/{len(rows)}", **row, "schema": f"{TABLE}\nINSERT INTO orders VALUES\n{values};",
                   "query": row["response"], "ordered": ordered}
        rows.append(row)
    return rows


def quantity_rows(rng: random.Random, count: int, test: bool) -> list[Row]:
    """Word problems whose answer is a number with a unit."""
    rows: list[Row] = []
    while len(rows) < count:
        question, value, unit = rng.choice(PROBLEMS)
        b = rng.randint(2, 12)
        a = b * rng.randint(2, 30)
        quantity = f"{value(a, b):g} {unit}"
        row: Row = {"instruction": f"{question.format(a=a, b=b)} Answer with a number and its unit.", "response": quantity}
        if test:
            row = {"task_id": f"quantity/{len(rows)}", **row, "quantity": quantity}
        rows.append(row)
    return rows


TASKS: dict[str, tuple[Callable[[random.Random, int, bool], list[Row]], int, int]] = {
    "extraction": (extraction_rows, 1600, 120), "sql": (sql_rows, 300, 60), "quantities": (quantity_rows, 300, 60)}
"""By name of the folder: what makes its rows, and how many rows train and test have."""
