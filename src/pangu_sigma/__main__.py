"""`python -m pangu_sigma` is `pangu-sigma`."""

import sys

from pangu_sigma.cli import main

sys.exit(main())
