"""The command `python -m experiments.bench`: our speed as ratios against peers that take turns with ours on the same data."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from experiments.bench.harness import format_rows
from experiments.cases import log_to_terminal
from pangu_sigma.errors import exit_status

BENCHES = (
    *(
        "adam",
        "checkpoint",
        "decode",
        "ecss",
        "evaluate",
        "moe",
        "ops",
        "overlap",
        "rows",
        "scale",
        "segments",
        "serve",
        "tokenizer",
    ),
    "train",
)
"""Modules beside this one, each with run(peers) -> rows."""


def main() -> int:
    """Run the benchmark that the command line names, and print its table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument(
        "--peers", action="store_true", help="with the peers: the [bench] extra, python -m experiments.peers"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON, too")
    options = parser.parse_args()
    rows = importlib.import_module(f"experiments.bench.{options.bench}").run(options.peers)
    print(format_rows(rows))
    if options.json is not None:
        options.json.write_text(json.dumps([row.as_dict() for row in rows], ensure_ascii=False, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    log_to_terminal()
    sys.exit(exit_status(main))
