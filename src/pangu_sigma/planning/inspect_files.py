"""What files of weights hold: parameters by their role, types, hashes, lineage, and whether `inherit` would take them.

Headers and small files are read, and no values unless they are to be verified.

    run, checkpoint       the newest checkpoint by its name; with verification the newest intact one
    export                counted by its configuration: the weights are inside of the graph
    file of weights       what `export --format safetensors` wrote
    hf                    what `convert --to hf` wrote
    anything else         a released PanGu-α, if it is one: convert/README.md says which
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.format import (
    MANIFEST,
    PARTS,
    STATE,
    CheckpointError,
    DamagedCheckpoint,
    Identity,
    read_manifest,
)
from pangu_sigma.checkpoint.model_files import CONFIG_FILE, read_config, read_model_files
from pangu_sigma.checkpoint.parts import EXPERTS, decode_parts
from pangu_sigma.checkpoint.root import candidates
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.safetensors_file import map_arrays, metadata_of
from pangu_sigma.checkpoint.state import LOSS_SCALE, OPTIMIZER
from pangu_sigma.config import Config
from pangu_sigma.config_file import config_in_text, parse_config
from pangu_sigma.convert.hf_folder import is_hf_folder, read_hf_folder
from pangu_sigma.convert.safetensors import HASH, is_weights_file, verify_safetensors
from pangu_sigma.convert.trained_model import read_lineage
from pangu_sigma.foreign.dense_files import open_dense_model
from pangu_sigma.generate.exported import GRAPH_FILE
from pangu_sigma.inherit.parent import NO_TOKENIZER, foreign_refusal, sparse_refusal
from pangu_sigma.parallel.parameters import weights

Listed = Iterable[tuple[str, str, tuple[int, ...], str]]
"""Role, name, shape and type of tensors."""


@dataclass
class FileInspection:
    """What a folder or file holds.

    kind: "run", "checkpoint", "export", "weights", "hf", or the layout of a foreign model. step: of the checkpoint, if it is known.
    roles: tensors, parameters, bytes and types of each role in the network. hashes: by what they are of. verified: what was
    compared with its hash. lineage: the receipt of how it got its weights. refusal: why `inherit` would not take it; None if it
    would. notes: what else there is to say. config: of the model, if the files have one.
    """

    path: str
    kind: str
    step: int | None
    roles: dict[str, dict[str, Any]]
    hashes: dict[str, str]
    verified: str
    lineage: dict[str, Any] | None
    refusal: str | None
    notes: list[str] = field(default_factory=list)
    config: Config | None = None

    def as_dict(self) -> dict[str, Any]:
        """It as plain values, the configuration by its name."""
        return {**vars(self), "config": self.config and self.config.name}


def inspect_files(path: Path, verify: bool = False) -> FileInspection:
    """What is in a folder or file. verify: True to compare every file with its hash, which reads all of it.

    Raises UserError for damage, and for what is nothing of the list above.
    """
    if (path / GRAPH_FILE).exists():
        return _inspect_export(path, verify)
    if (path / CONFIG_FILE).exists():
        return _inspect_run(path, verify)
    if (path / MANIFEST).exists() and (path / STATE).exists():
        return _inspect_checkpoint(path, verify)
    if is_hf_folder(path):
        return _inspect_hf(path, verify)
    return _inspect_weights(path, verify) if is_weights_file(path) else _inspect_foreign(path, verify)


def _inspect_run(path: Path, verify: bool) -> FileInspection:
    run = RunFolder.open(path)
    if verify:
        load_checkpoint(run.checkpoints, run.identity)
    newest = next(iter(candidates(run.checkpoints)), None)
    if newest is None:
        raise CheckpointError(f"{run.checkpoints}: holds no checkpoint; train the run first")
    step, _, roles = _checkpoint_roles(newest)
    hashes = {"tokenizer": run.tokenizer.hash, "routing table": run.table.hash}
    verified = "configuration, tokenizer, routing table" + (", checkpoint" if verify else "")
    refusal = sparse_refusal(run.config)
    return FileInspection(
        *(str(path), "run", step, roles, hashes, verified, read_lineage(path), refusal), config=run.config
    )


def _inspect_checkpoint(path: Path, verify: bool) -> FileInspection:
    if verify:
        load_checkpoint(path)
    step, identity, roles = _checkpoint_roles(path)
    hashes = {"tokenizer": identity.vocabulary_hash, "routing table": identity.routing_hash}
    if identity.data_hash:
        hashes["data"] = identity.data_hash
    refusal = "is a checkpoint, which has no tokenizer; name the run folder that it is in"
    verified = "manifest, all files" if verify else "manifest"
    config = parse_config(identity.config)
    return FileInspection(str(path), "checkpoint", step, roles, hashes, verified, None, refusal, config=config)


def _inspect_export(path: Path, verify: bool) -> FileInspection:
    config = read_config(path, "export", "export it again")
    if verify:
        read_model_files(path, "export it again")
    roles = _count(
        (_role_of(array.name), array.name, array.shape, "float32") for array in weights(config.on_one_rank())
    )
    refusal = "is an export, whose weights are inside of its graph; inherit from the run that it came from"
    verified = "configuration, all files" if verify else "configuration"
    found = FileInspection(str(path), "export", None, roles, {}, verified, read_lineage(path), refusal, config=config)
    found.notes.append("counted by its configuration")
    return found


def _inspect_hf(path: Path, verify: bool) -> FileInspection:
    model = read_hf_folder(path, values=verify)
    roles = _count((_role_of(name), name, t.shape, t.dtype.name) for name, t in model.tensors.items())
    hashes = {"tokenizer": model.tokenizer.hash, "routing table": model.table.hash}
    if model.data_hash:
        hashes["data"] = model.data_hash
    verified = "all files" if verify else "all files but those of the weights"
    refusal = sparse_refusal(model.config)
    return FileInspection(
        *(str(path), "hf", model.step, roles, hashes, verified, model.lineage, refusal), config=model.config
    )


def _inspect_weights(path: Path, verify: bool) -> FileInspection:
    if verify:
        verify_safetensors(path)
    metadata = metadata_of(path)
    config = config_in_text(metadata["config"], str(path))
    roles = _count((_role_of(name), name, a.shape, a.dtype.name) for name, a in map_arrays(path).items())
    verified, hashes = "the whole file" if verify else "nothing", {"file": metadata[HASH]}
    return FileInspection(str(path), "weights", None, roles, hashes, verified, None, NO_TOKENIZER, config=config)


def _inspect_foreign(path: Path, verify: bool) -> FileInspection:
    model = open_dense_model(path)
    roles = _count((_role_of(name), name, t.shape, t.dtype.name) for name, t in model.tensors.items())
    found = FileInspection(str(path), model.layout, None, roles, {}, "nothing", None, foreign_refusal(model))
    found.notes = [
        f"{model.layers} layers, hidden {model.hidden}, FFN {model.ffn}, {model.heads or 'an unknown number of'} heads, context "
        f"{model.seq_length}, {model.vocabulary} rows",
        f"GELU {model.activation}" + ("" if model.activation_known else ", assumed: the files do not say it"),
        *(f"unused: {each.name} ({each.reason})" for each in model.unused),
    ]
    if model.heads is None:
        found.notes.append("`inherit` needs --heads")
    if verify:
        found.notes.append("files of this layout have no hashes to verify by")
    return found


def _checkpoint_roles(path: Path) -> tuple[int, Identity, dict[str, dict[str, Any]]]:
    """Step, identity and roles of a checkpoint, by its manifest and the headers of its files.

    Raises DamagedCheckpoint for a file that is missing or has another size than was written.
    """
    manifest = read_manifest(path)
    tensors: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {}
    for name, recorded in manifest["files"].items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size != recorded["bytes"]:
            what = "is missing" if size is None else f"has {size} bytes, {recorded['bytes']} were written"
            raise DamagedCheckpoint(f"{path / name}: {what}; use another checkpoint")
        if name.endswith(".safetensors"):
            divided = decode_parts(metadata_of(path / name).get(PARTS, "{}"))
            for each, values in map_arrays(path / name).items():
                whole = divided[each].whole if each in divided else values.shape
                tensors[name.partition(".")[0], each] = whole, values.dtype.name
    listed = ((_role_in(file, name), name, shape, dtype) for (file, name), (shape, dtype) in tensors.items())
    return manifest["step"], Identity(**manifest["identity"]), _count(listed)


ADAM, EXPERT_ROLE = "Adam state", "experts"
"""Roles that are no dense weights'."""


def _role_in(file: str, name: str) -> str:
    """The role of an array of a checkpoint. file: without its ending and rank."""
    if file == LOSS_SCALE:
        return "loss scale"
    if file == OPTIMIZER or name == "step" or name.endswith((".moment", ".variance")):
        return ADAM
    return EXPERT_ROLE if file.startswith(EXPERTS) else _role_of(name)


def _role_of(name: str) -> str:
    """The role of a weight in the network, by its name."""
    words = name.split(".")
    if "experts" in words:
        return EXPERT_ROLE
    if words[0] == "embedding":
        return "word tables"
    if words[0] in ("positions", "query_positions"):
        return "positions"
    kinds = {"attention": "attention", "ffn": "dense FFN"}
    return next((role for word, role in kinds.items() if word in words), "LayerNorm")


def _count(tensors: Listed) -> dict[str, dict[str, Any]]:
    numbers: dict[str, Counter[str]] = {}
    types: dict[str, set[str]] = {}
    for role, _, shape, dtype in tensors:
        size = 1
        for length in shape:
            size *= length
        width = int("".join(c for c in dtype if c.isdigit()) or 8) // 8
        numbers.setdefault(role, Counter()).update({"tensors": 1, "parameters": size, "bytes": size * width})
        types.setdefault(role, set()).add(dtype)
    return {role: {**counts, "types": sorted(types[role])} for role, counts in numbers.items()}


def format_file_inspection(found: FileInspection) -> str:
    """It as a table for people."""
    head = f"{found.path}: {found.kind}" + ("" if found.step is None else f", step {found.step}")
    rows = [(f"  {role}", _role_text(counts)) for role, counts in found.roles.items()]
    dense_and_experts = [c for role, c in found.roles.items() if role not in (ADAM, "loss scale")]
    rows.insert(0, ("parameters", f"{sum(c['parameters'] for c in dense_and_experts):,}"))
    rows += [(f"hash of {what}", value) for what, value in found.hashes.items()]
    rows.append(("verified", found.verified))
    rows.append(("lineage", _lineage_text(found.lineage)))
    rows += [("", note) for note in found.notes]
    rows.append(("inherit", found.refusal or "takes it"))
    width = max(len(label) for label, _ in rows)
    return "\n".join([head, *(f"  {label:<{width}}  {value}" for label, value in rows)])


def _role_text(counts: dict[str, Any]) -> str:
    return f"{counts['parameters']:,} in {counts['tensors']:,} tensors, {', '.join(counts['types'])}, {counts['bytes']:,} bytes"


def _lineage_text(lineage: dict[str, Any] | None) -> str:
    if lineage is None:
        return "none"
    return ", ".join(f"{key} {lineage[key]}" for key in ("kind", "parent", "layout", "parent_hash") if key in lineage)
