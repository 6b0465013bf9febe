"""`python -m experiments.chaos [--full] [--only ROW …]`: do every case, print the table, end with 0 only if all hold."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from experiments.chaos.cases import FaultRow
from experiments.chaos.ledger import CaseResult, Ledger
from experiments.chaos.rows import ROWS


def main() -> int:
    """Run rows in processes of their own, two at a time, and print the table."""
    parser = argparse.ArgumentParser(description="Faults done to runs on purpose, and counted.")
    parser.add_argument("--full", action="store_true", help="all cases, some hours; finished ones are kept")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--work", type=Path, default=Path("runs/chaos"), help="folder of results and scratch files")
    parser.add_argument("--one", choices=list(ROWS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if options.one:
        _run_row(ROWS[options.one], work, options.full)
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and all they start, ignore it
    started = time.monotonic()
    rows = options.only or list(ROWS)
    _run_rows(rows, work, options.full)
    return _table([ROWS[name] for name in rows], work, options.full, time.monotonic() - started)


def _run_rows(names: list[str], work: Path, full: bool) -> None:
    """Rows in processes of their own: what ends one ends no other. Two at a time; those that count seconds alone, at the end."""
    waiting = sorted(names, key=lambda name: ROWS[name].alone)
    running: list[subprocess.Popen] = []
    with tqdm(total=len(names), desc="rows", unit="row") as progress:
        while waiting or running:
            while waiting and len(running) < (1 if ROWS[waiting[0]].alone else 2):
                arguments = ["--one", waiting.pop(0), "--work", str(work), *(["--full"] if full else [])]
                running.append(subprocess.Popen([sys.executable, "-m", "experiments.chaos", *arguments]))
            still = [process for process in running if process.poll() is None]
            progress.update(len(running) - len(still))
            running = still
            time.sleep(0.2)


def _run_row(row: FaultRow, work: Path, full: bool) -> None:
    """Do the cases of a row that are not done yet."""
    ledger = Ledger(work, row.name)
    done = ledger.results()
    cases = [case for case in row.cases(work, full) if case.name not in done or done[case.name].why]
    for case in tqdm(cases, desc=row.name, unit="case", leave=False):
        folder = work / "scratch" / row.name / case.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ledger.add(CaseResult(row.name, case.name, 0.0, "it ended the program", ""))  # what a crash leaves standing
        started, why, note = time.monotonic(), "", ""
        try:
            note = case.check(folder)
        except AssertionError as failed:
            why = str(failed) or "an assertion without words"
        except Exception as error:  # a case that breaks did not hold
            why = f"{type(error).__name__}: {error}"
        ledger.add(CaseResult(row.name, case.name, round(time.monotonic() - started, 1), why, note))
        if not why:
            shutil.rmtree(folder, ignore_errors=True)


def _table(rows: list[FaultRow], work: Path, full: bool, seconds: float) -> int:
    """Print the table and what did not hold; 0 if everything did."""
    print(f"{'row':<24} {'held':>11} {'minutes':>8}  must hold")
    wrong: list[str] = []
    for row in rows:
        names = [case.name for case in row.cases(work, full)]
        results = Ledger(work, row.name).results()
        held = [name for name in names if name in results and not results[name].why]
        minutes = sum(results[name].seconds for name in names if name in results) / 60
        notes = "; ".join(dict.fromkeys(results[name].note for name in held if results[name].note))
        print(
            f"{row.name:<24} {len(held):>5}/{len(names):<5} {minutes:8.1f}  {row.must}{f' [{notes[:200]}]' if notes else ''}"
        )
        wrong += [
            f"{row.name} {name}: {results[name].why if name in results else 'not done'}"
            for name in names
            if name not in held
        ]
    print(f"{sum(1 for _ in rows)} rows in {seconds / 60:.1f} minutes of this call; {len(wrong)} cases did not hold")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("GLOG_v", "3")
    sys.exit(main())
