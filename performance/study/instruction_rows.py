"""Draw rows of an instruction file for a study: ``python -m performance.study.instruction_rows DATA.json OUT``.

DATA.json is a list in the alpaca form. Writes OUT/train.jsonl (64 rows), OUT/reserved.jsonl (30) and OUT/report.jsonl (80);
``--train``, ``--reserved`` and ``--report`` change the numbers. No two rows have the same instruction and input, and none is
longer than 600 characters, which 256 tokens hold. ``--seed`` chooses other rows (default 0).
"""

import argparse
import json
import random
from pathlib import Path

from xft_core.demo.data import write_jsonl

ROWS = {"train": 64, "reserved": 30, "report": 80}
LONGEST = 600  # characters of a row's texts


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    for name, count in ROWS.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="ROWS")
    options = parser.parse_args()
    rows = json.loads(options.data.read_text(encoding="utf-8"))
    short = [row for row in rows if sum(len(text) for text in row.values()) <= LONGEST]
    different = list({(row["instruction"], row.get("input")): row for row in short}.values())
    random.Random(f"instruction rows {options.seed}").shuffle(different)
    counts = {name: vars(options)[name] for name in ROWS}
    if len(different) < sum(counts.values()):
        parser.error(f"{options.data} has {len(different)} different rows of at most {LONGEST} characters, "
                     f"but {sum(counts.values())} are asked for. Ask for fewer.")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, count in counts.items():
        write_jsonl(options.out / f"{name}.jsonl", different[:count])
        different = different[count:]


if __name__ == "__main__":
    main()
