"""Environment of the Python processes that this one starts: nothing is imported from the working folder, which may be anybody's.

Python puts the working folder in front of its library for `-m` and `-c`, unless PYTHONSAFEPATH is set. An empty entry of
PYTHONPATH, which CANN's set_env.sh leaves, means the working folder, too. Processes that the children start inherit both.
"""

from __future__ import annotations

import os


def child_environment() -> dict[str, str]:
    """Return the environment of this process, changed so that a Python process does not import from the working folder."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, environment["PYTHONPATH"].split(os.pathsep)))
    return environment
