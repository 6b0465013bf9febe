"""What the code computes, held against what an earlier commit computed: `python -m tests.reference.measure [--write FILE]`.

Short trainings, the arrays of their last checkpoints, and the greedy answers of an export. Everything goes through the Python
face, two ranks through the command line, and files are read with the safetensors library, so that a change of the house needs no
change here. What `computed.json` has of `dense`, `rre`, `balanced`, `file_tier` and `float16`, and the answers, were written by
commit 0265ac7; `segments`, `segments_worker_file`, `segments_balanced` and `two_ranks` were added by commit ab9cf900.
The arrays `loss_scale/value` were written again when float32 lost its loss scale, and no others changed.

Equal bits can be expected of one kind of processor, whose name is in the file. On another one, and for several ranks, losses are
compared within rounding; answers are compared everywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

import pangu_sigma as ps
from experiments.chaos.launched import free_port
from experiments.tiny import tiny_config, tiny_tree, write_text

STORED = Path(__file__).parent / "computed.json"
RENAMED: dict[str, str] = {}
"""Parts of stored array names, and what stands there now: a file or a tensor that a commit has renamed."""
OTHER_PROCESSOR, OTHER_RANKS = 2e-3, 1e-4
"""Maximum differences of two losses in nats: from those of another processor, and of two ranks, which add up in another order."""

_SEGMENTS: dict[str, dict[str, Any]] = {
    "model": {"segments": ["own", "own", "common", "common"], "common_experts": 4, "dropout": 0.1},
    "train": {"accumulation": 2},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "dense": {"model": {"dense_layers": 3, "rre_layers": 0}},
    "rre": {},
    "balanced": {"routing": {"table": "balanced"}},
    "file_tier": {"ecss": {"store": "file"}},
    "float16": {"train": {"compute_dtype": "float16"}},
    "segments": _SEGMENTS,
    "segments_worker_file": _SEGMENTS | {"ecss": {"update": "worker", "store": "file"}},
    "segments_balanced": _SEGMENTS | {"routing": {"table": "balanced"}},
}
TWO_RANKS: dict[str, dict[str, Any]] = _SEGMENTS | {"parallel": {"expert": 2, "capacity_factor": 4.0}}
PROMPTS = {"zh": ["今天 天气", "你好"], "en": ["the cat dog", "small old"], "code": ["x y total", "def add"]}


def processor() -> str:
    """Name of this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def losses(run: Path) -> dict[str, list[float]]:
    """Held-out loss of each domain, of each evaluation of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluations = [line["per_domain_loss"] for line in lines if line["kind"] == "evaluation"]
    return {domain: [evaluation[domain] for evaluation in evaluations] for domain in evaluations[0]}


def hashes(run: Path) -> dict[str, str]:
    """Hash of each array of the newest checkpoint of a run, by the name of its file and its own."""
    newest = max((run / "checkpoints").glob("step_*"))
    found = {}
    for file in sorted(newest.rglob("*.safetensors")):
        with safe_open(file, "np") as arrays:
            for name in sorted(arrays.keys()):
                array = arrays.get_tensor(name)
                content = f"{array.dtype} {array.shape}".encode() + array.tobytes()
                found[f"{file.name}/{name}"] = hashlib.sha256(content).hexdigest()[:16]
    return found


def train_two_ranks(folder: Path) -> Path:
    """Train TWO_RANKS by `pangu-sigma launch`; its run folder."""
    tree = tiny_tree(folder / "prepared")
    for section, keys in TWO_RANKS.items():
        tree[section] = tree.get(section, {}) | keys
    (folder / "two_ranks.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    launch = [sys.executable, "-m", "pangu_sigma", "launch", "two_ranks.yaml", "--output", "two_ranks"]
    subprocess.run([*launch, "--master-port", str(free_port())], cwd=folder, check=True)
    return folder / "two_ranks"


def computed(folder: Path) -> dict[str, Any]:
    """Train, export and ask in a folder; what came of it."""
    write_text(folder / "text.jsonl")
    config = tiny_config(folder / "prepared")
    ps.prepare_data(config, folder / "text.jsonl")
    found: dict[str, Any] = {"processor": processor(), "losses": {}, "arrays": {}, "answers": {}}
    for name, sections in VARIANTS.items():
        model = ps.train(tiny_config(folder / "prepared", **sections), folder / name)
        found["losses"][name], found["arrays"][name] = losses(folder / name), hashes(folder / name)
        if name == "rre":
            model.export(folder / "export")
    found["losses"]["two_ranks"] = losses(train_two_ranks(folder))
    model = ps.load(folder / "export")
    for domain, prompts in PROMPTS.items():
        found["answers"][domain] = model.generate(prompts, domain=domain, max_new_tokens=12)
    return found


def renamed(name: str) -> str:
    """The name that a stored array has now."""
    for then, now in RENAMED.items():
        name = name.replace(then, now)
    return name


def differences(stored: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is not as it was, a line each; without arrays where the processors differ."""
    lines = [] if stored["answers"] == found["answers"] else ["answers differ"]
    same = stored["processor"] == found["processor"]
    for name in VARIANTS if same else ():
        then = {renamed(array): content for array, content in stored["arrays"][name].items()}
        if both := {array for array, _ in then.items() ^ found["arrays"][name].items()}:
            lines.append(f"{name}: {len(both)} arrays differ, such as {min(both)}")
    for name, domains in stored["losses"].items():
        tolerance = OTHER_PROCESSOR if not same else 0.0 if name in VARIANTS else OTHER_RANKS
        for domain, before in domains.items():
            now = found["losses"][name][domain]
            if not all(abs(a - b) <= tolerance for a, b in zip(before, now, strict=True)):
                lines.append(f"{name}: loss of {domain} {now}, it was {before}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="write what is computed, and compare nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = computed(Path(folder))
    if options.write is not None:
        options.write.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return 0
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    lines = differences(stored, found)
    arrays = f"{sum(map(len, stored['arrays'].values()))} arrays"
    if stored["processor"] != found["processor"]:
        arrays = "no arrays (another processor)"
    runs, domains = len(stored["losses"]), len(PROMPTS)
    print("\n".join(lines) or f"equal: {arrays}, losses of {runs} runs, {domains} domains of answers")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
