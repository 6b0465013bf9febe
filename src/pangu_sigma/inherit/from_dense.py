"""A dense run becomes the step 0 of a sparse one.

    parent, L + N dense layers                child, L dense + N RRE layers
    attention, LayerNorm, positions       →   the same, one to one
    FFN of the lower L layers             →   the same
    FFN of the upper N layers             →   every expert of that layer, an equal copy; without a gate the sum is unchanged
    embedding rows                        →   rows of the same tokens in every slot; tokens the parent lacks are drawn anew

Adam starts from nothing. Our choice where the paper is silent: rows of new tokens keep the child's own initial values, drawn from
N(0, model.init_std).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.state import load_trained
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.vocabulary import FIRST_ENGLISH, Vocabulary
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.predictor import Predictor
from pangu_sigma.inherit.receipt import Receipt, SlotReceipt
from pangu_sigma.model.pangu_sigma import FFN_TENSORS
from pangu_sigma.train.loop import Trainer

COMPARED_TOKENS = 32
"""Tokens on which the receipt compares the logits of parent and child."""


def inherit(parent: Path, config: Config, folder: Path) -> Receipt:
    """Make `folder` a run of `config` whose step 0 is the newest intact checkpoint of the dense run `parent`.

    The folder appears whole or not at all, and `train` goes on from it. Raises ConfigError when `folder` exists, when the parent is
    sparse, or when it differs from the child in a key that must be equal; CheckpointError and DataError as training does.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists; choose another folder with --run")
    source = RunFolder.open(parent)
    _check_shapes(source.config, config)
    parents = [parent_slot(name, slot_names(source.config)) for name in slot_names(config)]
    checkpoint = load_checkpoint(source.checkpoints, source.identity)
    dense, _ = load_trained(source, checkpoint)
    values = {name: parameter.asnumpy() for name, parameter in dense.parameters_and_names()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as unfinished:
        child = Path(unfinished) / folder.name
        trainer = Trainer(config, child)
        copied = _copy_shared(values, trainer)
        replicated = _replicate_experts(values, trainer)
        slots = _copy_slots(values["embedding"], source, parents, trainer)
        trainer.save()
        trainer.ranks.leave()
        receipt = Receipt(
            parent=str(parent),
            parent_step=checkpoint.step,
            copied=copied + sum(s.copied for s in slots) * config.model.hidden,
            replicated=replicated,
            copies=config.experts,
            slots=slots,
            tokens_compared=COMPARED_TOKENS,
            logit_difference=_compare(parent, child),
        )
        receipt.save(child)
        try:
            child.rename(folder)
        except OSError as error:
            raise ConfigError(
                f"{folder} was made by somebody else meanwhile ({error.strerror}); choose another folder"
            ) from error
    return receipt


def slot_names(config: Config) -> list[str]:
    """Names of the embedding slots of a configuration, in their order."""
    return domains_of(config).slot_names


def _check_shapes(parent: Config, child: Config) -> None:
    if parent.model.rre_layers:
        raise ConfigError(
            f"the parent has model.rre_layers={parent.model.rre_layers}; only a dense run (rre_layers=0) can be inherited"
        )
    for key in ("hidden", "ffn", "heads", "activation", "seq_length", "layers"):
        has, wants = getattr(parent.model, key), getattr(child.model, key)
        if has != wants:
            name = "dense_layers + rre_layers" if key == "layers" else key
            raise ConfigError(
                f"model.{name} is {wants}, the parent's is {has}; they must be equal: change the child's configuration"
            )
    if child.parallel.ranks > 1:
        raise ConfigError(
            f"parallel lays out {child.parallel.ranks} ranks; inherit in one process (parallel.*=1), any layout trains on from it"
        )


def _copy_shared(values: dict[str, np.ndarray], trainer: Trainer) -> int:
    """Copy everything but the embedding and the FFNs that become experts; returns how many parameters."""
    copied = 0
    for name, parameter in trainer.network.parameters_and_names():
        if name != "embedding":
            parameter.asnumpy()[...] = values[name]
            copied += parameter.size
    return copied


def _replicate_experts(values: dict[str, np.ndarray], trainer: Trainer) -> int:
    """Copy the FFN of each upper layer to all experts of it; returns how many parameters of the parent."""
    replicated, model = 0, trainer.config.model
    for layer in range(model.rre_layers):
        stored = trainer.store.layer_parameters(layer)
        for name in FFN_TENSORS:
            value = values[f"layers.{model.dense_layers + layer}.ffn.{name}"]
            for expert in stored[name].asnumpy():
                expert[...] = value
                trainer.store.tier.release()
            replicated += value.size
    return replicated


def _copy_slots(embedding: np.ndarray, source: RunFolder, parents: list[int], trainer: Trainer) -> list[SlotReceipt]:
    """Copy the parent's row of each token to the rows of that token in every slot. parents: the parent's slot of each slot."""
    parent, child, names = source.tokenizer, trainer.run.tokenizer, slot_names(trainer.config)
    known_V = parent_ids(parent.vocabulary, child.vocabulary)
    table_SRH = embedding.reshape(len(parent.slot_rows), -1, embedding.shape[-1])
    own = dict(trainer.network.parameters_and_names())["embedding"].asnumpy()
    target_SRH = own.reshape(len(names), -1, embedding.shape[-1])
    receipts = []
    for slot, (name, of_parent) in enumerate(zip(names, parents, strict=True)):
        used = np.flatnonzero(child.slot_rows[slot] >= 0)
        ids = known_V[child.slot_rows[slot, used]]
        rows = np.where(ids >= 0, parent.row_of[of_parent, np.maximum(ids, 0)], -1)
        known = rows >= 0
        target_SRH[slot, used[known]] = table_SRH[of_parent, rows[known]]
        count = int(known.sum())
        receipts.append(SlotReceipt(name, slot_names(source.config)[of_parent], len(used), count, len(used) - count))
    return receipts


def parent_slot(name: str, parent_names: list[str]) -> int:
    """The parent's slot that a slot of the child takes its rows from: the one of that name, else the parent's only one."""
    if name in parent_names:
        return parent_names.index(name)
    if len(parent_names) == 1:
        return 0
    raise ConfigError(
        f"domains: slot {name!r} has no parent: the parent's slots are {', '.join(parent_names)}; use one of these names"
    )


def parent_ids(parent: Vocabulary, child: Vocabulary) -> np.ndarray:
    """The parent's id of each of the child's tokens, -1 where it has none: int64 [V].

    PanGu-α's pieces, tags and bytes have the same ids everywhere; English pieces are matched by the bytes they stand for.
    """
    english = {surface: FIRST_ENGLISH + i for i, surface in enumerate(parent.surfaces[FIRST_ENGLISH:])}
    return np.array([*range(FIRST_ENGLISH), *(english.get(s, -1) for s in child.surfaces[FIRST_ENGLISH:])])


def _compare(parent: Path, child: Path) -> dict[str, float]:
    """Largest |Δlogit| of each domain of the child against the parent, over the tokens that both have."""
    before, after = Predictor.from_run(parent), Predictor.from_run(child)
    known_V = parent_ids(before.tokenizer.vocabulary, after.tokenizer.vocabulary)
    parent_domains = domains_of(before.config)
    differences = {}
    for domain in domains_of(after.config):
        slot = parent_slot(slot_names(after.config)[domain.slot], parent_domains.slot_names)
        theirs = parent_domains.in_slot(slot)[0]
        rows = np.flatnonzero(after.tokenizer.slot_rows[domain.slot] >= 0)
        ids = after.tokenizer.slot_rows[domain.slot, rows]
        parent_rows = np.where(known_V[ids] >= 0, before.tokenizer.row_of[slot, np.maximum(known_V[ids], 0)], -1)
        both = parent_rows >= 0
        length = min(COMPARED_TOKENS, after.config.model.seq_length)
        drawn = np.random.default_rng(domain.index).choice(ids[both], length).tolist()
        mine = after.next_logits([drawn], [domain])[0, rows[both]]
        its = before.next_logits([known_V[drawn].tolist()], [theirs])[0, parent_rows[both]]
        differences[domain.name] = float(np.abs(mine - its).max())
    return differences
