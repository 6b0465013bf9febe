"""The weights of a run as one safetensors file."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.parts import Part, copy_part
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.safetensors_file import new_file
from pangu_sigma.checkpoint.state import EXPERTS, WEIGHTS
from pangu_sigma.config_file import dump_config
from pangu_sigma.model.pangu_sigma import FFN_TENSORS


def export_safetensors(run_path: Path, output: Path) -> Path:
    """Write all weights of a run's newest intact checkpoint into one file, whatever ranks wrote them; its metadata hold the
    configuration.

    Names are those of the network's parameters, and `experts.<layer>.<name>` of shape [experts, …]. The file appears whole or not
    at all, and need not fit into memory.
    """
    run = RunFolder.open(run_path)
    checkpoint = load_checkpoint(run.checkpoints, run.identity)
    arrays = checkpoint.saved(WEIGHTS)
    for layer in range(run.config.model.rre_layers):
        experts = checkpoint.saved(f"{EXPERTS}{layer}")
        arrays |= {f"experts.{layer}.{name}": experts[name] for name in FFN_TENSORS}
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.unfinished")
    shapes = {name: (saved[0].values.dtype, saved[0].part.whole) for name, saved in arrays.items()}
    targets = new_file(unfinished, shapes, {"config": dump_config(run.config.on_one_rank())})
    for name in tqdm(targets, desc="export", unit="array", leave=False):
        target = targets[name]
        for saved in arrays[name]:
            copy_part(saved, target, Part.everything(target.shape))
    unfinished.rename(output)
    return output
