"""What a release writes, kept for the versions after it: `python -m tests.stored.releases.write`, once for each release.

It makes VERSION.tar.xz in this folder: `prepared`, `run`, `export` (MindIR) and `hf` of three domains with own and common experts,
their text, and `losses.json`, those of the text. PanGu-α's pieces, which the package pcl-pangu has, and pages for people are
left out.
"""

from __future__ import annotations

import contextlib
import json
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import pangu_sigma as ps
from experiments.tiny import tiny_tree, write_text
from pangu_sigma.config_file import parse_config

PIECES = "pangu_alpha.model"
STEPS = 4


def write(folder: Path) -> None:
    """Prepare text, train, export and evaluate in a folder."""
    with contextlib.chdir(folder):
        write_text(Path("text.jsonl"))
        tree = tiny_tree(Path("prepared"))
        tree["model"] |= {"segments": ["own", "common"], "common_experts": 3}
        tree["data"]["shuffle"] = "keyed"
        tree["train"] |= {"steps": STEPS, "eval_interval": STEPS, "checkpoint_interval": STEPS, "keep_checkpoints": 1}
        config = parse_config(tree)
        ps.prepare_data(config, "text.jsonl")
        trained = ps.train(config, "run")
        trained.export("export")
        trained.export("hf", format="hf")
        Path("losses.json").write_text(json.dumps(losses("run")))


def losses(model: str) -> dict[str, float]:
    """Return the loss of each domain's part of the text."""
    return {domain: each["loss"] for domain, each in ps.evaluate(model, input="text.jsonl").items()}


def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return an entry of the archive without owner and time; None if it is left out."""
    if Path(entry.name).name in (PIECES, "report", "tensorboard", "LOCK"):
        return None
    return entry.replace(uid=0, gid=0, uname="", gname="", mtime=0, deep=False)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        write(Path(made))
        with tarfile.open(Path(__file__).with_name(f"{version('pangu-sigma')}.tar.xz"), "w:xz", preset=9) as archive:
            for name in ("text.jsonl", "losses.json", "prepared", "run", "export", "hf"):
                archive.add(Path(made) / name, name, filter=kept)
