"""`python -m pangu_sigma` is `pangu-sigma`."""

import sys

from pangu_sigma.cli import program

sys.exit(program())
