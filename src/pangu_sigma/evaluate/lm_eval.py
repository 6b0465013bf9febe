"""lm-evaluation-harness's own command, with this project's model among its models and its tasks among its tasks.

    python -m pangu_sigma.evaluate.lm_eval run --model pangu-sigma --model_args path=runs/sigma_tiny,domain=zh \
        --tasks ocnli --metadata '{"data": "FOLDER", "seq_length": 256}' --batch_size auto
"""

from __future__ import annotations

import sys

from pangu_sigma.evaluate import harness as harness  # registers the model
from pangu_sigma.evaluate.benchmarks import TASKS


def with_tasks(arguments: list[str]) -> list[str]:
    """Add this project's task folder to lm-evaluation-harness's arguments, unless they name a task folder or ask for help."""
    if not arguments or any(a in ("-h", "--help") or a.startswith("--include_path") for a in arguments):
        return arguments
    return [*arguments, "--include_path", str(TASKS)]


def main() -> None:
    """Run lm-evaluation-harness's command with this project's model and tasks."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv[1:] = with_tasks(sys.argv[1:])
    cli_evaluate()


if __name__ == "__main__":
    main()
