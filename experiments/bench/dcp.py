"""The script of a peer.Worker, which saves with torch.distributed.checkpoint. It is run by path and imports nothing of ours."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp


class Saving:
    """Saves of the same arrays, one process over gloo, called as torch's documentation calls them.

    settings: shapes (of float32 arrays by name), folder.
    """

    def __init__(self, settings: dict[str, Any]):
        self.folder, self.number = Path(settings["folder"]), 0
        self.folder.mkdir(parents=True)
        dist.init_process_group("gloo", init_method=f"file://{self.folder}/meeting", rank=0, world_size=1)
        self.state = {name: torch.randn(*shape) for name, shape in settings["shapes"].items()}

    def step(self) -> dict[str, Any]:
        """One save behind, and one at once. Returns the seconds of both, and whether the first holds the state at its call."""
        self.number += 1
        behind, at_once = (self.folder / f"{kind}_{self.number}" for kind in ("behind", "at_once"))
        name, values = next(iter(self.state.items()))
        before = values.clone()
        started = time.perf_counter()
        answer = dcp.async_save(self.state, checkpoint_id=behind)
        stall = time.perf_counter() - started
        values += 1
        getattr(answer, "upload_completion", answer).result()
        found = {name: torch.empty_like(values)}
        dcp.load(found, checkpoint_id=behind)
        started = time.perf_counter()
        dcp.save(self.state, checkpoint_id=at_once)
        save = time.perf_counter() - started
        for folder in (behind, at_once):
            shutil.rmtree(folder)
        return {"stall": stall, "save": save, "intact": torch.equal(found[name], before)}


def main() -> None:
    """Save as the JSON of the first argument says: once, and a line of JSON, for each line of standard input."""
    # Libraries print to standard error, so that standard output has answers only.
    answers, sys.stdout = sys.stdout, sys.stderr
    saving = Saving(json.loads(sys.argv[1]))
    print(json.dumps({"bytes": sum(values.nbytes for values in saving.state.values())}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(saving.step()), file=answers, flush=True)


if __name__ == "__main__":
    main()
