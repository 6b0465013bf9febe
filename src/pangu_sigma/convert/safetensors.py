"""The weights of a run as one safetensors file, which carries its own hash.

The metadata have it: `xxh3_128`, the hash of the whole file with zeros in place of these 32 digits.
"""

from __future__ import annotations

from pathlib import Path

import xxhash
from tqdm import tqdm

from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.mapped_file import let_go
from pangu_sigma.checkpoint.parts import EXPERTS, WEIGHTS, Part, copy_part
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.safetensors_file import metadata_of, new_file
from pangu_sigma.config_file import dump_config
from pangu_sigma.convert.mindir import ExportError
from pangu_sigma.model.pangu_sigma import FFN_TENSORS
from pangu_sigma.sealed import DamagedFile, sync

HASH = "xxh3_128"
"""Key of the file's hash in its metadata."""
_NO_HASH = "0" * 32


def export_safetensors(run_path: Path, output: Path) -> Path:
    """Write all weights of a run's newest intact checkpoint into one file, whatever ranks wrote them; its metadata hold the
    configuration.

    Names are those of the network's parameters, and `experts.<layer>.<name>` of shape [experts, …]. The file appears whole or not
    at all, and need not fit into memory. Raises ExportError, before any work, when it cannot be written.
    """
    run = RunFolder.open(run_path)
    unfinished = output.with_name(f".{output.name}.unfinished")
    _check_writable(output, unfinished)
    checkpoint = load_checkpoint(run.checkpoints, run.identity)
    arrays = checkpoint.saved(WEIGHTS)
    for layer in range(run.config.model.rre_layers):
        experts = checkpoint.saved(f"{EXPERTS}{layer}")
        arrays |= {f"experts.{layer}.{name}": experts[name] for name in FFN_TENSORS}
    shapes = {name: (saved[0].values.dtype, saved[0].part.whole) for name, saved in arrays.items()}
    metadata = {"config": dump_config(run.config.on_one_rank()), HASH: _NO_HASH}
    targets = new_file(unfinished, shapes, metadata)
    for name in tqdm(targets, desc="export", unit="array", leave=False):
        target = targets[name]
        for saved in arrays[name]:
            copy_part(saved, target, Part.everything(target.shape))
        let_go(target)
    digits, at = _hash_of(unfinished)
    with open(unfinished, "r+b") as stream:
        stream.seek(at)
        stream.write(digits.encode())
    verify_safetensors(unfinished)
    sync(unfinished)
    unfinished.rename(output)
    return output


def verify_safetensors(file: Path) -> None:
    """Read an exported file whole. Raises DamagedFile if a bit of it is not what was written, or if it has no hash."""
    try:
        digits, at = _hash_of(file)
        with open(file, "rb") as stream:
            stream.seek(at)
            written = stream.read(len(_NO_HASH))
    except (OSError, ValueError, KeyError) as error:
        raise DamagedFile(f"{file}: {error}; it is damaged, or has no hash: export it again") from error
    if written != digits.encode():
        raise DamagedFile(f"{file}: its content does not match its own hash; it is damaged, export it again")


def is_weights_file(file: Path) -> bool:
    """True if a file is one that `export_safetensors` wrote, by its header."""
    try:
        return file.is_file() and {"config", HASH} <= metadata_of(file).keys()
    except (OSError, DamagedFile):
        return False


def _hash_of(file: Path) -> tuple[str, int]:
    """The hash of a file, and where in it the hash is written."""
    written = metadata_of(file)[HASH].encode()
    digest = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        length = stream.read(8)
        header = length + stream.read(int.from_bytes(length, "little"))
        at = header.index(b'"%s": "%s"' % (HASH.encode(), written)) + len(HASH) + 5
        digest.update(header[:at] + _NO_HASH.encode() + header[at + len(_NO_HASH) :])
        while chunk := stream.read(8 << 20):
            digest.update(chunk)
    return digest.hexdigest(), at


def _check_writable(output: Path, unfinished: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error.strerror}; choose another --output") from error
    if output.is_dir():
        raise ExportError(f"{output} is a folder; choose another --output")
