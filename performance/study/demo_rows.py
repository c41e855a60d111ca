"""Generate rows of the demo that no earlier study has seen: ``python -m performance.study.demo_rows [OUT] [--seed 1]``.

Writes OUT/train.jsonl (100 rows), OUT/reserved.jsonl (150) and OUT/report.jsonl (500). The seed of the shipped rows is 0.
"""

import argparse
import random
from pathlib import Path

from xft_core.demo.data import instruction_rows, write_jsonl

ROWS = {"train": 100, "reserved": 150, "report": 500}


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("deployments/studies/rates"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, count in ROWS.items():
        write_jsonl(options.out / f"{name}.jsonl", instruction_rows(random.Random(f"study {name} {options.seed}"), count))


if __name__ == "__main__":
    main()
