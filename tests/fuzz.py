"""Fuzz everything that is loaded: `python tests/fuzz.py --cases 20000`. Prints a table; status 0 only if every case passes."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")

from helpers.fuzzing import TARGETS, Tally, fuzz


def main() -> int:
    """Run and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", type=int, default=20_000, help="of all targets together; half are made from valid files"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS, action="append", help="may be repeated")
    options = parser.parse_args()
    names, failed, whole = options.only or list(TARGETS), [], Tally()
    with tempfile.TemporaryDirectory(prefix="pangu_sigma_fuzz_") as folder:
        targets = {name: TARGETS[name](Path(folder) / name / "valid") for name in names}
        shares = sum(target.share for target in targets.values())
        print(f"{'loaded':16} {'from':8} {'cases':>7} {'past the first look':>20} {'taken':>7} {'seconds':>8}")
        for name, target in targets.items():
            count = -(-options.cases * target.share // (2 * shares))
            for mutated in (False, True):
                begun = time.monotonic()
                try:
                    tally = fuzz(target, mutated, int(count), Path(folder) / name, options.seed)
                except BaseException:
                    failed.append(name)
                    traceback.print_exc(limit=-6)
                    continue
                seconds, share = time.monotonic() - begun, tally.past_first / tally.cases
                print(
                    f"{name:16} {'valid' if mutated else 'nothing':8} {tally.cases:7,} {tally.past_first:11,} = {share:6.1%} "
                    f"{tally.taken:7,} {seconds:8.1f}",
                    flush=True,
                )
                whole.cases += tally.cases
                whole.past_first += tally.past_first
                whole.taken += tally.taken
        share = whole.past_first / max(1, whole.cases)
        print(f"{'all':16} {'':8} {whole.cases:7,} {whole.past_first:11,} = {share:6.1%} {whole.taken:7,}")
        print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "no crash, no hang, nothing executed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
