"""Training: the step as one graph (`step.py`), and the loop around it (`loop.py`)."""
