"""Fine-tuning on two tasks whose text packages ship: what is learned, and what is forgotten of all other domains.

    translation_en_zh   messages of programs and their Chinese translations; tuned on some programs, tested on others, and
                        pre-training has seen neither
    qa                  "What is NAME?", answered by the first line of NAME's manual page; held out by package

Small models of four domains, a Σ and a dense one of the same active size, with the same embedding slots, are trained on the same
samples at the same rate. Then the Σ is tuned three ways (its experts alone, experts and slot, everything), and the dense one; all
on the same examples, the same number of steps, the same rates. The rate of a variant is that of its lowest dev loss with the first
seed; its other seeds are tuned at that rate alone. Before and after, each answers the test items greedily. No message of the test
stands in what a model was trained or tuned on; how many were left out for that is in tasks.txt.

--steps are those of pre-training, --set changes its keys. The manual pages are of Debian's packages: apt-get downloads them, after
an apt-get update; where there is no apt-get, leave qa away. It can be stopped: the same command keeps what has ended and goes on;
with other settings use another --folder. What comes out is in the folder: <task>.txt and .json, every answer in answers/, and
cases.json, the seconds of each case.
"""

from __future__ import annotations

import argparse
import sys

from experiments.cases import log_to_terminal
from experiments.finetune_packages.tuning import finetune_packages
from experiments.small import add_options
from pangu_sigma.errors import exit_status


def main() -> int:
    """Print the tables of each task as they come."""
    parser = argparse.ArgumentParser(prog="python -m experiments.finetune_packages", description=__doc__)
    add_options(parser, "finetune_packages", ("1e-3", "3e-3", "9e-3"))
    parser.add_argument("--tasks", nargs="+", default=["translation_en_zh", "qa"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tune-steps", type=int, default=120)
    options = vars(parser.parse_args())
    for text in finetune_packages(overrides=options.pop("set"), **options):
        print(text, end="\n\n", flush=True)
    return 0


if __name__ == "__main__":
    log_to_terminal()
    sys.exit(exit_status(main))
