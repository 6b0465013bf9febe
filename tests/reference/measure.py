"""What the code computes, held against what an earlier commit computed: `python -m tests.reference.measure [--write FILE]`.

Five short trainings (dense, RRE, balanced tables, experts in files, float16), the arrays of their last checkpoints, and the greedy
answers of an export. Everything goes through the Python face and files are read with the safetensors library, so that a change of
the house needs no change here. `computed.json` was written by commit 0265ac7.

Bits are those of one kind of processor, whose name is in the file; on another one only losses and answers can be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

import pangu_sigma as ps
from experiments.tiny import tiny_config, write_text

STORED = Path(__file__).parent / "computed.json"
"""Written by commit 0265ac7."""
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "dense": {"model": {"dense_layers": 3, "rre_layers": 0}},
    "rre": {},
    "balanced": {"routing": {"table": "balanced"}},
    "file_tier": {"ecss": {"store": "file"}},
    "float16": {"train": {"compute_dtype": "float16"}},
}
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
    model = ps.load(folder / "export")
    for domain, prompts in PROMPTS.items():
        found["answers"][domain] = model.generate(prompts, domain=domain, max_new_tokens=12)
    return found


def differences(stored: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is not as it was, a line each; without arrays where the processors differ."""
    lines = [] if stored["answers"] == found["answers"] else ["answers differ"]
    same = stored["processor"] == found["processor"]
    for name in VARIANTS:
        if same and stored["arrays"][name] != found["arrays"][name]:
            both = stored["arrays"][name].items() ^ found["arrays"][name].items()
            lines.append(f"{name}: {len({key for key, _ in both})} arrays differ, such as {min(both)[0]}")
        for domain, then in stored["losses"][name].items():
            now = found["losses"][name][domain]
            if then != now if same else any(abs(a - b) > 2e-3 for a, b in zip(then, now, strict=True)):
                lines.append(f"{name}: loss of {domain} {now}, it was {then}")
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
    arrays = sum(len(each) for each in stored["arrays"].values())
    compared = f"{arrays} arrays, " if stored["processor"] == found["processor"] else "no arrays (another processor), "
    print("\n".join(lines) or f"equal: {compared}losses of {len(VARIANTS)} runs, {len(PROMPTS)} domains of answers")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
