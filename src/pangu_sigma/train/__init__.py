"""Training: one step as one graph (`step.py`), and the loop around it (`loop.py`)."""
