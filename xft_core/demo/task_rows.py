"""Rows of the three shipped tasks: customers' letters to JSON, questions to SQL, word problems with units. The given generator
determines all rows."""

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

# Customers' messages. The last wording of each topic appears only in the test split.
PRODUCTS = ("lamp", "chair", "kettle", "radio", "clock", "bag")
TOPICS = {
    "refund": ("I want my money back for the {}.", "Please refund the {}.", "Pay me back, the {} was too dear.",
               "I ask for a refund of the {}."),
    "delivery": ("Where is my {}?", "The {} has not arrived.", "When do you deliver the {}?", "I still wait for the {}."),
    "defect": ("The {} is broken.", "My {} does not work.", "The {} fell apart.", "The {} came with a crack."),
    "question": ("How do I use the {}?", "What is the {} made of?", "Is the {} safe for children?", "Can I clean the {}?"),
    "praise": ("I love the {}.", "The {} is great, thank you.", "What a fine {}!", "We are very happy with the {}."),
}
URGENT = ("I need an answer today.", "This is urgent.", "Call me at once.")
PATIENT = ("There is no hurry.", "Take your time.", "Best wishes.")
TICKET_SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["topic", "product", "urgent"],
    "properties": {"topic": {"enum": list(TOPICS)}, "product": {"enum": list(PRODUCTS)}, "urgent": {"type": "boolean"}}}

TABLE = "CREATE TABLE orders (name TEXT, city TEXT, item TEXT, quantity INTEGER, price REAL, day TEXT);"
# Question, query, and whether the order of the rows counts.
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

# Question, a function from the two given numbers to the answer, and the answer's unit.
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
    """Customers' messages, and the ticket as JSON: topic, product, and whether it is urgent. Test and training rows have
    different customers, so no row is in both."""
    names = NAMES[8:] if test else NAMES[:8]
    rows: list[Row] = []
    while len(rows) < count:
        topic, product, urgent = rng.choice([*TOPICS]), rng.choice(PRODUCTS), rng.random() < 0.5
        place = rng.randrange(len(TOPICS[topic]) - (not test))
        sentences = [TOPICS[topic][place].format(product), rng.choice(URGENT if urgent else PATIENT)]
        if rng.random() < 0.5:
            sentences.reverse()
        record = {"topic": topic, "product": product, "urgent": urgent}
        row: Row = {"instruction": f"Write a ticket: {' '.join(sentences)} {rng.choice(names)}", "response": json.dumps(record)}
        if test:
            wording = "new" if place == len(TOPICS[topic]) - 1 else "known"
            row = {"task_id": f"ticket/{len(rows)}", **row, "record": record, "schema": TICKET_SCHEMA, "wording": wording}
        rows.append(row)
    return rows


def sql_rows(rng: random.Random, count: int, test: bool) -> list[Row]:
    """Questions about a table of orders, and the query. Each test problem has its own table rows."""
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
    "extraction": (extraction_rows, 1600, 100), "sql": (sql_rows, 300, 60), "quantities": (quantity_rows, 300, 60)}
"""By folder name: the function that generates the rows, and the numbers of rows in train and test."""
