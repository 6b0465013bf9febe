"""`python -m pangu_sigma.mindformers_adapter CONFIG`: MindFormers' run script, which its wheel lacks."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import yaml

from pangu_sigma.config_file import read_tree
from pangu_sigma.errors import exit_status
from pangu_sigma.mindformers_adapter import register
from pangu_sigma.mindformers_adapter.yaml_keys import sigma_config


def main(arguments: list[str] | None = None) -> int:
    """Train with MindFormers from the YAML that the arguments name. Returns the exit status: 2 for an error that users can fix."""
    parser = argparse.ArgumentParser(
        prog="python -m pangu_sigma.mindformers_adapter", description="train PanGu-Σ with mindformers.Trainer"
    )
    parser.add_argument("config", type=Path, help="YAML file in MindFormers' style")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key of it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return exit_status(lambda: _train(options.config, options.set))


def _train(path: Path, overrides: list[str]) -> int:
    """Train with MindFormers from a YAML file, and return 0. overrides: KEY=VALUE for keys of the file."""
    tree = read_tree(path, overrides)
    sigma_config(tree)  # a wrong key is refused before MindSpore is loaded
    folder = Path(tree.get("output_dir", "output"))
    os.environ.setdefault("LOG_MF_PATH", str(folder / "log"))
    register()
    from mindformers import MindFormerConfig, Trainer, build_context

    folder.mkdir(parents=True, exist_ok=True)
    resolved = folder / "mindformers.yaml"
    resolved.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    config = MindFormerConfig(str(resolved))
    build_context(config)
    Trainer(args=config).train()
    return 0


if __name__ == "__main__":
    sys.exit(main())
