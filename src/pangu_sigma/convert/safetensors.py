"""Export of a run's weights as one safetensors file (stored/weights_file.py)."""

from __future__ import annotations

from pathlib import Path

from pangu_sigma.bars import Bar
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.parts import EXPERTS, WEIGHTS
from pangu_sigma.checkpoint.safetensors_file import write_arrays
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import dump_config
from pangu_sigma.errors import argument
from pangu_sigma.model.arrays import dense_shapes, stored_shapes
from pangu_sigma.sealed import sync
from pangu_sigma.stored.open import open_model
from pangu_sigma.stored.weights_file import HASH, NO_HASH, hash_of_weights, verify_weights
from pangu_sigma.training.first_checkpoint import check_absent
from pangu_sigma.writable import check_folder_writable


def export_safetensors(run_path: Path, output: Path) -> Path:
    """Write all weights of a run's newest intact checkpoint into one safetensors file, with the configuration in its metadata.

    Names are those of the network's parameters, and `experts.<segment>.<name>` of shape [experts, …], with segments numbered over
    all RRE layers. The file is written atomically, tensor by tensor. Raises ConfigError if `output` exists or has another suffix,
    and NotWritable if it cannot be written, before any work.
    """
    check_absent(output)
    if output.suffix != ".safetensors":
        raise ConfigError(
            f"{argument('--output')} {output}: by its name nothing would open it as weights; name it {output.name}.safetensors"
        )
    run = open_model(run_path, "run")
    unfinished = output.with_name(f".{output.name}.unfinished")
    check_folder_writable(output.parent, "--output")
    output.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, LazyArray] = {}
    for name, shape in (dense_shapes(run.config) | stored_shapes(run.config)).items():
        words = name.split(".")
        shard, inner = (f"{EXPERTS}{words[1]}", words[2]) if words[0] == "experts" else (WEIGHTS, name)
        arrays[name] = run.required(shard, inner, shape)
    metadata = {"config": dump_config(run.config.on_one_rank()), HASH: NO_HASH}
    with Bar(total=sum(array.nbytes for array in arrays.values()), desc="export", unit="B", leave=False) as bar:
        write_arrays(unfinished, arrays, lambda: None, metadata, lambda name, first, values: bar.update(values.nbytes))
    digits, at = hash_of_weights(unfinished)
    with open(unfinished, "r+b") as stream:
        stream.seek(at)
        stream.write(digits.encode())
    verify_weights(unfinished)
    sync(unfinished)
    unfinished.rename(output)
    return output
