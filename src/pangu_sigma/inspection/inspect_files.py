"""Inspection of files of weights: parameters by role, dtypes, hashes, lineage, and whether `inherit` accepts the model.

Headers and small files are read; the values of weights are read only for verification.

    run, checkpoint       the newest checkpoint by its name; with verification the newest intact one, and the damage of newer ones
    export                counted by its configuration: the weights are inside the graph
    hf                    folder that `export --format hf` wrote
    other files           a released PanGu-α in one of the layouts of foreign/README.md
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_ops.rows import record_size
from pangu_sigma.checkpoint.checkpoint import ANOTHER, DamagedCheckpoint
from pangu_sigma.checkpoint.compose import saved_arrays
from pangu_sigma.checkpoint.model_files import CONFIG_FILE, read_config
from pangu_sigma.checkpoint.parts import EXPERTS, LOSS_SCALE, OPTIMIZER, ROWS
from pangu_sigma.config import Config
from pangu_sigma.errors import DataError, argument
from pangu_sigma.inherit.parent import parent_refusal
from pangu_sigma.inspection.inspect import format_rows
from pangu_sigma.model.arrays import row_scale_shapes
from pangu_sigma.sealed import DamagedFile
from pangu_sigma.stored.alpha import StoredAlpha
from pangu_sigma.stored.model import Kind, ListedArray, StoredModel
from pangu_sigma.stored.open import kind_of, open_model
from pangu_sigma.stored.run import StoredRun


@dataclass
class FileInspection:
    """Contents of a folder or file of weights.

    kind: "run", "checkpoint", "export", "hf", or the layout of a foreign model. step: step of the checkpoint, if known.
    roles: number of tensors, parameters and bytes, and dtypes, by role in the network. hashes: content hashes, by the name of what
    was hashed. verified: names of the files compared with their hashes. lineage: record of the weights' origin. refusal: reason
    why `inherit` refuses the model; None if it accepts. notes: further remarks. config: the model's configuration, if known.
    damaged: with verification, a message on each damaged file or checkpoint; without an intact checkpoint nothing else is known.
    """

    path: str
    kind: str
    step: int | None = None
    roles: dict[str, dict[str, Any]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    verified: str = "nothing"
    lineage: dict[str, Any] | None = None
    refusal: str | None = None
    notes: list[str] = field(default_factory=list)
    config: Config | None = None
    damaged: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the inspection as plain values, with the configuration's name in place of the configuration."""
        return {**vars(self), "config": self.config and self.config.name}


def inspect_files(path: Path, verify: bool = False) -> FileInspection:
    """Inspect a folder or file of weights. verify: True to compare every file with its hash, which reads all bytes.

    Raises UserError for a path that holds no model of a known kind, and without `verify` for a damaged file.
    """
    try:
        return _inspect(path, verify)
    except (DamagedFile, DamagedCheckpoint, DataError) as error:  # DataError: the hash is right, but not the content
        if not verify:
            raise
        return FileInspection(str(path), kind_of(path), damaged=[str(error)])


def _inspect(path: Path, verify: bool) -> FileInspection:
    """Inspect a model as `inspect_files` does, but raise the error for damage also with `verify`."""
    model = open_model(path, verified=verify)
    # only to refuse an edited configuration; other commands read the one in the newest checkpoint instead
    if model.kind == "run" and (path / CONFIG_FILE).exists():
        read_config(path, "run", "change keys with --set, or remove the file")
    arrays = list(model.listed())
    roles, verified = _count_by_role(arrays), _VERIFIED[model.kind][verify]
    inspection = FileInspection(
        str(path), model.layout, model.step, roles, model.hashes, verified, model.lineage, parent_refusal(model)
    )
    if isinstance(model, StoredAlpha):
        inspection.notes = _alpha_notes(model)
    else:
        inspection.config, segments = model.config, model.config.model.segments
        if len(segments) > 1:
            stored = ", ".join(f"{kind} {model.config.stored_experts(kind)}" for kind in segments)
            inspection.notes.append(f"experts in the segments of an RRE layer: {stored}")
        inspection.notes += _row_notes(model, arrays)
    if model.kind == "export":
        inspection.notes.append("counted by its configuration")
    if isinstance(model, StoredRun):
        _check_complete(model, arrays)
        inspection.damaged = list(model.checkpoint.passed_over)
    return inspection


def _check_complete(run: StoredRun, arrays: Iterable[ListedArray]) -> None:
    """Raise DamagedCheckpoint if the newest checkpoint of a run lacks an array that the run restores. arrays: in its files."""
    required = saved_arrays(run.config)
    if missing_keys := sorted(required.keys() - {(shard, name) for shard, name, *_ in arrays}):
        shard, name = missing_keys[0]
        raise DamagedCheckpoint(
            f"{run.path}: the checkpoint of step {run.step} lacks {len(missing_keys)} of {len(required)} arrays, which a run with "
            f"its configuration restores, such as {name} of shard {shard}; {ANOTHER}"
        )


_VERIFIED: dict[Kind, tuple[str, str]] = {
    "run": (files := "configuration, tokenizer, routing table, lineage", f"{files}, checkpoint"),
    "checkpoint": ("seal", "seal, all files"),
    "export": ("configuration", "configuration, all files"),
    "hf": ("all files but the weights", "all files"),
    "alpha": ("nothing", "checksums of torch's zip files, tensors that must be equal; other files have no hashes"),
}
"""Kind of model → names of the files that are verified, without and with `verify`."""


def _alpha_notes(model: StoredAlpha) -> list[str]:
    """Return remarks on a PanGu-α in the files of another project."""
    sizes = model.sizes
    return [
        f"{sizes.layers} layers, hidden {sizes.hidden}, FFN {sizes.ffn}, {sizes.heads or 'an unknown number of'} heads, context "
        f"{sizes.seq_length}, {sizes.vocabulary} rows",
        f"GELU {sizes.activation}" + ("" if sizes.activation_known else ", assumed: the files do not say it"),
        *(f"unused: {name} ({reason})" for name, reason in model.unused.items()),
        *([f"`inherit` needs {argument('--heads')}"] if sizes.heads is None else []),
    ]


def _row_notes(model: StoredModel, arrays: Iterable[ListedArray]) -> list[str]:
    """Return remarks on each entry of `model.rows`: how many of its rows training met, and the learned scale before each layer."""
    config, notes = model.config, list[str]()
    row_counts = {shard: shape[0] for shard, name, shape, _ in arrays if shard.startswith(ROWS) and name == "keys"}
    for number, entry in enumerate(config.model.rows):
        if f"{ROWS}{number}" in row_counts:
            count, rows = row_counts[f"{ROWS}{number}"], config.stored_rows(entry)
            row_bytes = 8 + 4 * record_size(entry.width)  # key and record
            notes.append(
                f"rows, entry {number}: {count:,} of {rows:,} met ({count / rows:.2%}), order {entry.order}, {entry.kind}, "
                f"width {entry.width}, {count * row_bytes:,} bytes with Adam state and keys"
            )
    if notes:
        scales = (model.tensor(name).item() for name in row_scale_shapes(config.model.layers))
        notes.append(f"scale of rows in front of each layer: {', '.join(f'{scale:.4g}' for scale in scales)}")
    return notes


ADAM, ROW_KEYS = "Adam state", "keys of rows"
"""Roles of arrays that are no parameters."""
_ROLES = {"experts": "experts", "embedding": "word tables", "positions": "positions", "query_positions": "positions"}
_ROLES |= {"attention": "attention", "ffn": "dense FFN", "row_scale": "scales of rows"}
"""Word in the name of a weight → its role in the network; the first that is there counts, LayerNorm if none is."""


def _role_of(shard: str, name: str) -> str:
    """Return the role of an array in the network. shard: part of a checkpoint that the array is in; "" in other files."""
    if shard == LOSS_SCALE:
        return "loss scale"
    if shard == OPTIMIZER or name.rpartition(".")[2] in ("step", "moment", "variance"):
        return ADAM
    if shard.startswith(ROWS):
        return ROW_KEYS if name == "keys" else "rows"
    words = ["experts"] if shard.startswith(EXPERTS) else name.split(".")
    return next((role for word, role in _ROLES.items() if word in words), "LayerNorm")


def _count_by_role(arrays: Iterable[ListedArray]) -> dict[str, dict[str, Any]]:
    """Return, by role in the network, a dictionary: numbers of "tensors", "parameters" and "bytes", and "types", the dtypes."""
    counts_by_role: dict[str, Counter[str]] = {}
    dtypes: dict[str, set[str]] = {}
    for shard, name, shape, dtype in arrays:
        role, size = _role_of(shard, name), math.prod(shape)
        item_bytes = int("".join(c for c in dtype if c.isdigit()) or 8) // 8  # bool, without digits, has one byte
        counts = {"tensors": 1, "parameters": size, "bytes": size * item_bytes}
        counts_by_role.setdefault(role, Counter()).update(counts)
        dtypes.setdefault(role, set()).add(dtype)
    return {role: {**counts, "types": sorted(dtypes[role])} for role, counts in counts_by_role.items()}


def format_file_inspection(inspection: FileInspection) -> str:
    """Format an inspection as a table; without an intact checkpoint, only the damage."""
    head = f"{inspection.path}: {inspection.kind}" + ("" if inspection.step is None else f", step {inspection.step}")
    damaged = [("DAMAGED", message) for message in inspection.damaged]
    if damaged and not inspection.roles:
        return format_rows(head, damaged)
    roles = inspection.roles
    rows = [
        (f"  {role}", f"{n['parameters']:,} in {n['tensors']:,} tensors, {', '.join(n['types'])}, {n['bytes']:,} bytes")
        for role, n in roles.items()
    ]
    total = sum(n["parameters"] for role, n in roles.items() if role not in (ADAM, ROW_KEYS, "loss scale"))
    rows.insert(0, ("parameters", f"{total:,}"))
    rows += [(f"hash of {name}", value) for name, value in inspection.hashes.items()]
    lineage = inspection.lineage or {}
    origin = ", ".join(f"{key} {lineage[key]}" for key in ("kind", "parent", "layout", "parent_hash") if key in lineage)
    rows += [("verified", inspection.verified), ("lineage", origin or "none")]
    rows += [("", note) for note in inspection.notes]
    limit = f", as far as headers tell ({argument('--verify')}: all values)" if inspection.verified == "nothing" else ""
    rows.append(("inherit", inspection.refusal or f"takes it{limit}"))
    return format_rows(head, damaged + rows)
