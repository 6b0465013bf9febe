"""What fails around a run, done to it on purpose, and counted: `run_scripts/chaos.sh`.

A *row* is a kind of fault with what must hold; a *case* is one fault. `rows.py` lists the rows; each other file has the cases of
one subject. `ledger.py` keeps every finished case, so that a program that was killed goes on where it was.
"""
