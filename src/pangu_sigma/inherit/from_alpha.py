"""Inheritance: a dense model becomes step 0 of a sparse run, every expert of whose upper layers is a copy of the FFN there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pangu_sigma.checkpoint.changes import absolute_paths
from pangu_sigma.checkpoint.parts import OPTIMIZER
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.batches import open_samples
from pangu_sigma.data.prepared import data_of, drawn_tables, read_prepared_tokenizer, refuse_spare_rows, unlike_prepared
from pangu_sigma.domains import domains_of, matching_slot
from pangu_sigma.errors import DataError, argument
from pangu_sigma.inherit.child import Child, SlotRows, ffn_source, new_run_from
from pangu_sigma.inherit.parent import look_up, table_rows
from pangu_sigma.inherit.receipt import Receipt, count_by_origin
from pangu_sigma.model.arrays import FIRST_ROW_SCALE, dense_shapes, stored_shapes
from pangu_sigma.results import aligned
from pangu_sigma.stored.alpha import StoredAlpha
from pangu_sigma.stored.model import StoredModel, expert_name
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import matching_ids
from pangu_sigma.training.first_checkpoint import unfinished_folder

logger = logging.getLogger(__name__)


def plan_inheritance(parent: StoredModel, config: Config, moments: bool = False, drop_rows: bool = False) -> Child:
    """Plan a sparse run that inherits from `parent`, without reading values.

    moments: True to copy Adam state. drop_rows: as in `inherited_slots`.
    Raises ConfigError if a key does not fit the parent, and if the parent lacks the moments; DataError without prepared text.
    """
    config = fit_to_parent(parent, config, moments)
    tokenizer, notes, domains = read_prepared_tokenizer(config), _notes(parent, config, moments), domains_of(config)
    refuse_spare_rows(config)
    for remark in unlike_prepared(config):
        logger.warning("%s", remark)
    if isinstance(parent, StoredAlpha):
        parent.assume(config.model.heads, None)
    slots, table = inherited_slots(parent, config, tokenizer, drop_rows), drawn_tables(config, tokenizer)
    ffn_K, config = np.zeros(config.experts, int), absolute_paths(config)  # all are copies of expert 0, the dense FFN
    child = Child("inherit", parent, config, tokenizer, table, slots, ffn_K, ffn_K == 0, moments)
    child.notes, child.options = notes, {"moments": moments}
    for domain in domains:  # PanGu-α cuts text of every language as Chinese
        slot = parent_slot(domains.slot_names[domain.slot], slot_names(parent))
        language = "zh" if parent.kind == "alpha" else domain.language
        child.answers[domain.name] = replace(domain, index=0, slot=slot, language=language)
    return child


def inherit(
    parent: StoredModel, config: Config, folder: Path, moments: bool = False, drop_rows: bool = False
) -> Receipt:
    """Write `folder`, atomically, as a run of `config` whose step 0 answers as `parent`; `train` resumes from it.

    moments, drop_rows: as in `plan_inheritance`. Raises its errors, ConfigError if `folder` exists, and LayoutError or
    CheckpointError if the parent cannot be read."""
    with unfinished_folder(folder) as new_folder:
        child = plan_inheritance(parent, config, moments, drop_rows)
        text = Path(child.config.data.path)
        open_samples(child.config, text, "train", child.tokenizer.size)  # too little text is refused before any work
        return new_run_from(child, new_folder, data_of(child.config).manifest.content_hash, text)


def fit_to_parent(parent: StoredModel, config: Config, moments: bool) -> Config:
    """Return `config` with the parent's GELU, unless `config` names one. moments: True if Adam state is inherited, too. Raises
    ConfigError, which names the key, if a run of `config` cannot inherit from `parent`."""
    activation = parent.sizes.activation
    if "activation" not in config.model.model_fields_set:
        config = config.model_copy(update={"model": config.model.model_copy(update={"activation": activation})})
    if config.model.activation != activation:
        logger.warning(
            "model.activation=%s is asked for, the parent computes %s, so step 0 answers otherwise; leave the key out to take it",
            *(config.model.activation, activation),
        )
    for key in ("hidden", "ffn", "heads", "seq_length", "layers"):
        parent_size, size = getattr(parent.sizes, key), getattr(config.model, key)
        if parent_size is not None and parent_size != size:
            name = "dense_layers + rre_layers" if key == "layers" else key
            raise ConfigError(
                f"model.{name} is {size}, the parent's is {parent_size}; they must be equal: change the child's "
                "configuration"
            )
    if moments and parent.array(OPTIMIZER, "step") is None:
        raise ConfigError(f"{parent.path}: has no Adam state; leave {argument('--moments')} out")
    if moments and config.ecss.moments != "float32":
        raise ConfigError(f"{argument('--moments')} carries float32 moments over; use ecss.moments=float32")
    for name in domains_of(config).slot_names:
        parent_slot(name, slot_names(parent))
    return config


def inherited_slots(parent: StoredModel, config: Config, tokenizer: Tokenizer, drop_rows: bool) -> list[SlotRows]:
    """Return the rows of each embedding slot of a new run of `config`.

    drop_rows: True to leave out rows of a parent run whose tokens the prepared text does not have; False raises ConfigError for
    such rows, because the same text would be cut into other tokens. (Of a released PanGu-α only the rows of the prepared text's
    tokens are ever copied.) Raises ConfigError for a slot that the parent lacks.
    """
    slots, names, domains = [], slot_names(parent), domains_of(config)
    old_id_V = matching_ids(parent.tokenizer.vocabulary, tokenizer.vocabulary)
    for slot, name in enumerate(domains.slot_names):
        source, ids_R = parent_slot(name, names), tokenizer.slot_rows[slot]
        parent_ids_R = look_up(old_id_V, ids_R)
        lost = lost_pieces(parent, source, parent_ids_R, domains.languages(slot))
        slots.append(
            SlotRows(name, names[source], ids_R, table_rows(parent.tokenizer, source, parent_ids_R), lost=lost)
        )
    problems = [
        f"slot {slot.name}: {len(slot.lost):,} tokens of the parent's slot {slot.parent_slot} ("
        f"{', '.join(map(repr, slot.lost[:5]))}) have no row"
        for slot in slots
        if slot.lost
    ]
    if problems and parent.kind != "alpha" and not drop_rows:
        listed = "\n  ".join(problems)
        raise ConfigError(
            f"data.path={config.data.path}: text would be cut into other tokens than {parent.path} cuts it:\n  {listed}\n"
            f"keep them: pangu-sigma prepare-data CONFIG --set vocabulary.keep={parent.path}, with a larger model.slot_rows or "
            f"slots of their own for what is new; or accept the loss with {argument('--drop-rows')}"
        )
    return slots


def slot_names(parent: StoredModel) -> list[str]:
    """Return the names of a parent's slots."""
    return ["alpha"] if parent.kind == "alpha" else domains_of(parent.config).slot_names


def parent_slot(name: str, parent_names: list[str]) -> int:
    """Return the number of the parent's slot called `name`, or else of its only slot. Raises ConfigError if there is neither."""
    slot = matching_slot(name, parent_names)
    if slot is None:
        raise ConfigError(
            f"domains: slot {name!r} has no parent: the parent's slots are {', '.join(parent_names)}; use one of these names"
        )
    return slot


def lost_pieces(parent: StoredModel, slot: int, ids: np.ndarray, languages: set[str]) -> list[str]:
    """Return the pieces that have a row in slot `slot` of the parent and none in a slot of the child, although text in a language
    of both slots can contain them. ids: the parent's ids of tokens with a row in the child's slot. languages: of its text."""
    vocabulary, slot_ids = parent.tokenizer.vocabulary, set(parent.tokenizer.slot_rows[slot].tolist())
    both = languages & ({"zh", "mixed"} if parent.kind == "alpha" else domains_of(parent.config).languages(slot))
    return [vocabulary.pieces[token] for token in sorted((slot_ids & vocabulary.producible(both)) - set(ids.tolist()))]


def _notes(parent: StoredModel, config: Config, moments: bool) -> list[str]:
    """Return notes of the receipt. moments: True if Adam state is copied."""
    model, notes = config.model, []
    if len(model.segments) > 1:
        kinds = ", ".join(f"{config.stored_experts(kind)} {kind}" for kind in model.segments)
        notes.append(f"each upper FFN is cut into {len(model.segments)} segments of {kinds} experts")
    elif model.rre_layers:
        notes.append(f"each upper FFN is {config.experts} experts")
    notes.append("Adam's moments are the parent's" if moments else "Adam starts with zero state")
    if parent.sizes.heads is None:
        notes.append("the parent's files do not say how many heads; taken from the configuration")
    if not parent.activation_known:
        notes.append(f"the parent's GELU is assumed: its files do not say it ({argument('--activation')})")
    return notes


def mapped(
    parent: StoredModel, config: Config, moments: bool = False, drop_rows: bool = False
) -> tuple[dict[str, str], str]:
    """Return the source of every weight of a run of `config` that would inherit from `parent`, by name, and a table for people.

    Nothing is written. Without prepared text nothing is known of rows. moments, drop_rows: as in `plan_inheritance`.
    """
    config = fit_to_parent(parent, config, moments)
    sources = sources_of(parent, config)
    slots, missing = [], list[str]()
    try:
        slots = inherited_slots(parent, config, read_prepared_tokenizer(config), drop_rows)
    except DataError:
        missing = [f"which rows are copied is known when text is prepared: prepare-data, into {config.data.path}"]
    counts = count_by_origin(config, [slot.counts for slot in slots], {"replicated": config.num_params().experts})
    numbers = [f"{kind}: {count:,} parameters" for kind, count in counts.items() if count]
    unused = [f"unused: {name} ({reason})" for name, reason in parent.unused.items()]
    table = aligned([("child", "layers", "shape", "parent"), *_equal_layers(sources)], "<")
    return {name: source for name, (_, source) in sources.items()}, "\n".join([*table, *unused, *numbers, *missing])


def sources_of(parent: StoredModel, config: Config) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return (shape, source) of every weight of a run of `config` by name, dense weights first. source: name in the parent's files,
    as text for people. The experts of a segment are one weight, with the number *."""

    def source(name: str) -> str:
        if name not in parent.tensors:
            return f"none: {FIRST_ROW_SCALE}, of rows that are 0"
        return parent.made_from.get(name) or parent.tensors[name].origin or name

    model, sources = config.model, {name: (shape, source(name)) for name, shape in dense_shapes(config).items()}
    for key, shape in stored_shapes(config).items():
        _, segment, name = key.split(".")
        dense_name, units = ffn_source(model, int(segment), name)
        has_all_units = units == slice(None) or len(model.segments) == 1
        range_text = "" if has_all_units else f", units {units.start} … {units.stop - 1}"
        sources[expert_name(model, int(segment), "*", name)] = shape, source(dense_name) + range_text
    return sources


def _equal_layers(sources: dict[str, tuple[tuple[int, ...], str]]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (name, layers, shape, source) of each group of weights that differ in the layer alone; of layers the first … last."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, (shape, source) in sources.items():
        layer, short = name.split(".", 2)[1:] if name.startswith("layers.") else ("", name)
        groups.setdefault((short, str(shape)), []).append((layer, source))
    for (short, shape_text), group in groups.items():
        ends = group[:1] + group[1:][-1:]  # first and last, or the only one
        yield short, " … ".join(layer for layer, _ in ends), shape_text, " … ".join(source for _, source in ends)
