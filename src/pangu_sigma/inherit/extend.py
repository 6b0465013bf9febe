"""Extension of a trained Σ by domains, slots, English pieces or rows, which changes no bit of its answers for its domains.

    old domains, common segments, rows  all is copied, with Adam state; tables keep the entries of known tokens
    new domains                         experts of a named domain and its row of the routing tables; or drawn
    new slots                           rows of the same tokens of the named domain's slot; the rest is drawn
    new tokens                          rows are drawn; each domain's tables give them a drawn expert
    model.rows                          a run without rows may get some, which begin at 0

All of this is our choice; the paper says that domains can be added, not how. Tables are drawn from routing.seed and the *name* of
a domain, so they do not depend on other domains or on the order of extensions; tables of common segments from routing.seed alone.

Shape suffixes: N segments of all RRE layers, D domains, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash

from pangu_sigma.checkpoint.changes import absolute_paths, change_text, changed_keys, rule_of
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.batches import open_samples
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.prepared import data_of, read_prepared_tokenizer, refuse_spare_rows
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.inherit.child import Child, new_run_from
from pangu_sigma.inherit.parent import look_up
from pangu_sigma.inherit.receipt import WARM, Receipt
from pangu_sigma.rre.row_keys import extended_row_tables
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import matching_ids
from pangu_sigma.training.first_checkpoint import unfinished_folder

_MAY_CHANGE = (
    *("seed", "model.init_std", "model.expert_init"),  # they draw what is new
    "model.slot_rows",  # it may grow
    *("vocabulary.english_pieces", "vocabulary.english_model", "vocabulary.keep"),  # tokens are compared, not keys
)
"""Keys that an extension may change, though a resumed run may not."""


def check_extension(path: Path, old: Config, new: Config) -> None:
    """Raise ConfigError, which names the keys, if `new` changes keys that an extension cannot change. path: of the run."""
    if old.model.rre_layers == 0:
        raise ConfigError(
            f"{path} is dense (model.rre_layers=0), so it has no experts to add to; `pangu-sigma inherit` makes a sparse run of it"
        )
    problems = []
    for change in changed_keys(old.model_dump(mode="json"), new.model_dump(mode="json")):
        key, rule = change[0], rule_of(change[0])
        adds_rows = key.startswith("model.rows.") and not old.model.rows
        if not (rule.free or adds_rows or key in _MAY_CHANGE or key.startswith("domains.")):
            problems.append(f"{change_text(change)}: {rule.why}")
    problems += _changed_domains(old, new)
    if (rows := new.model.slot_rows) < (old_rows := old.model.slot_rows):
        problems.append(f"model.slot_rows: {old_rows} → {rows}: rows can be added, not taken away")
    if problems:
        lines = "\n  ".join([f"{path} cannot be extended to this configuration:", *problems])
        raise ConfigError(f"{lines}\nkeep the run's values (they are in {path / 'configuration.json'}) and add to them")


def _changed_domains(old: Config, new: Config) -> list[str]:
    """Return a text for each domain of `old` that `new` lacks, or whose slot, format or language differs in `new`."""
    by_name, problems = {domain.name: domain for domain in new.domains}, []
    whys = {"slot": "its rows are in that slot"}
    whys |= {key: rule_of(f"domains.0.{key}").why for key in ("format", "language")}
    for domain in old.domains:
        if domain.name not in by_name:
            advice = f"`pangu-sigma extract --drop {domain.name}` leaves it away"
            problems.append(f"domains: {domain.name} is missing: keep it; {advice}")
            continue
        for key, why in whys.items():
            before, after = getattr(domain, key), getattr(by_name[domain.name], key)
            if before != after:
                problems.append(f"domains: {key} of {domain.name}: {before} → {after}: {why}")
    return problems


def plan_extension(parent: StoredRun, config: Config, source: str | None = None, scratch: bool = False) -> Child:
    """Plan the extension of `parent` to a run of `config`, without reading tensors. source: domain of the parent that new domains
    and slots begin as. scratch: True to draw them.

    Raises ConfigError for a key that cannot be extended, DataError without text prepared for `config`.
    """
    if source is not None and scratch:
        both = f"{argument('--from-domain')} and {argument('--from-scratch')}"
        raise ConfigError(f"{both} say where new domains come from; give one of them")
    check_extension(parent.path, parent.config, config)
    _check_source(parent.config, config, source, scratch)
    tokenizer = _prepared_tokenizer(parent.path, config)
    old_id_V = matching_ids(parent.tokenizer.vocabulary, tokenizer.vocabulary)
    _check_vocabulary(parent, config, tokenizer)
    names = {domain.name for domain in parent.config.domains}
    source_of = {domain.name: domain.name if domain.name in names else source for domain in config.domains}
    sources = {name: parent_name for name, parent_name in source_of.items() if parent_name is not None}
    table = extended_tables(parent, config, tokenizer, old_id_V, sources)
    child = Child.of_run("extend", parent, absolute_paths(config), tokenizer, table, sources, source)
    origin = f"new, with experts and routing of domain {source}" if source else "new, its experts drawn"
    origin += ", its own rows 0" if any(entry.kind == "own" for entry in config.model.rows) else ""
    child.domains = {name: "as it was" if name in names else origin for name in source_of}
    child.notes = [WARM, *child.notes, *_notes(parent, config, tokenizer, len(sources) == len(source_of))]
    return child


def extend_run(path: Path, config: Config, folder: Path, source: str | None = None, scratch: bool = False) -> Receipt:
    """Write `folder`, atomically, as a run of `config` that extends the run in `path`; `train` resumes from its step 0.

    The receipt compares the logits of both models for the old domains' text. source: old domain whose experts new ones begin as.
    scratch: True to draw them.
    Raises ConfigError if a key of the configuration cannot be extended or `folder` exists, DataError without prepared text."""
    with unfinished_folder(folder) as new_folder:
        parent = open_model(path, "run")
        child = plan_extension(parent, config, source, scratch)
        text = Path(child.config.data.path)
        open_samples(child.config, text, "train", child.tokenizer.size)  # too little text is refused before any work
        cursor, position = text_cursor(parent, child.config)
        child.notes.append(position)
        return new_run_from(child, new_folder, data_of(child.config).manifest.content_hash, text, cursor)


def _check_source(old: Config, new: Config, source: str | None, scratch: bool) -> None:
    """Raise ConfigError if new domains have neither a source nor scratch=True, or if the source is no domain of the parent."""
    names, option = [domain.name for domain in old.domains], argument("--from-domain")
    added = [domain.name for domain in new.domains if domain.name not in names]
    if added and source is None and not scratch:
        raise ConfigError(
            f"domains: {', '.join(added)}: say what new domains begin as: {option} DOMAIN (experts of "
            f"{', '.join(sorted(names))}), or {argument('--from-scratch')} (drawn)"
        )
    if source is not None and source not in names:
        raise ConfigError(f"{option} {source}: the run has the domains {', '.join(names)}")


def _prepared_tokenizer(path: Path, config: Config) -> Tokenizer:
    """Load the tokenizer of the text that is prepared for a configuration. path: path of the parent, for messages."""
    try:
        tokenizer = read_prepared_tokenizer(config)
        refuse_spare_rows(config)
    except (DataError, ConfigError) as error:
        raise type(error)(f"{error}\n{_keep_ids(path)}") from error
    manifest = data_of(config).manifest
    settings_of = {domain.name: [domain.name, domain.format, domain.language, domain.slot] for domain in config.domains}
    # settings beyond these four, such as what is held out, may differ
    if differing := [name for name, settings in settings_of.items() if manifest.settings(name)[:4] != settings]:
        raise ConfigError(
            f"domains: {', '.join(differing)}: data.path={config.data.path} was prepared with another format, language or slot; "
            f"prepare its own text\n{_keep_ids(path)}"
        )
    return tokenizer


def _keep_ids(path: Path) -> str:
    return (
        f"to keep the tokens of the run and their rows: pangu-sigma prepare-data CONFIG --set vocabulary.keep={path}, or, to "
        "prepare only text of new domains, --extend with the run's data.path as data.path"
    )


def _check_vocabulary(parent: StoredModel, config: Config, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if a token that has a row in a slot of the parent has none in the same slot of the child."""
    vocabulary = parent.tokenizer.vocabulary
    child_id_V = matching_ids(tokenizer.vocabulary, vocabulary)
    names = domains_of(config).slot_names
    for slot, name in enumerate(domains_of(parent.config).slot_names):
        parent_ids_R = parent.tokenizer.slot_rows[slot]
        ids = parent_ids_R[parent_ids_R >= 0]
        rows = look_up(tokenizer.row_of[names.index(name)], child_id_V[ids])
        lost_ids = ids[rows < 0]
        if len(lost_ids):
            examples = ", ".join(repr(vocabulary.pieces[token]) for token in lost_ids[:5])
            advice = f"Keep them, or prepare and extend with model.slot_rows={tokenizer.size} or more, which holds every token;"
            if (child_id_V[lost_ids] < 0).any():
                advice = "The new vocabulary lacks some of them, so more rows do not help: keep the tokens;"
            raise ConfigError(
                f"slot {name}: {len(lost_ids)} of its {len(ids)} tokens have no row in data.path={config.data.path} any more "
                f"({examples}). {advice}\n{_keep_ids(parent.path)}"
            )


def extended_tables(
    parent: StoredModel, config: Config, tokenizer: Tokenizer, old_id_V: np.ndarray, origins: dict[str, str]
) -> RoutingTable:
    """Return the routing tables of an extended run: in the domains of `origins` the parent's entries, all others are drawn.

    old_id_V: the parent's id of each token, -1 for a new token, whose entries are drawn. origins: domain → domain of the parent.
    """
    old, experts = parent.table, config.model.experts_per_domain
    frequencies_DV = data_of(config).frequencies() if config.routing.table == "balanced" else None
    layers, size, segments = config.model.rre_layers, tokenizer.size, config.model.segments
    first_NDV = np.empty((len(config.model.routed), len(config.domains), size), np.int16)
    spread_DV = np.empty((len(config.domains), size), np.int16)
    is_old_V, of_rows = old_id_V >= 0, {}
    if config.model.rows:
        parent_rows = None if old.row_EV is None or old.before_EV1 is None else (old.row_EV, old.before_EV1)
        drawn_rows = extended_row_tables(config.model.rows, parent_rows, old_id_V, config.routing.seed)
        of_rows = dict(zip(("row_EV", "before_EV1"), drawn_rows, strict=True))

    def draw(seed: int, counts: np.ndarray | None) -> RoutingTable:
        """Draw the tables of one domain, or of the common segments. counts: token counts [1, V], for balanced tables."""
        kind = "random" if config.routing.file else config.routing.table
        routing = config.routing.model_copy(update={"seed": seed, "table": kind})
        return draw_tables(routing, layers, 1, size, experts, counts, segments, config.model.common_experts)

    # own segments: all entries of a domain are drawn, then the parent's entries replace the drawn ones
    for domain in domains_of(config):
        seed = xxhash.xxh3_64_intdigest(f"{config.routing.seed} {domain.name}".encode()) >> 2
        counts = None if frequencies_DV is None else frequencies_DV[[domain.index]]
        drawn = draw(seed, counts)
        first_NDV[:, domain.index], spread_DV[domain.index] = drawn.first_NDV[:, 0], drawn.spread_DV[0]
        if domain.name in origins:
            source = domains_of(parent.config).named(origins[domain.name]).index
            first_NDV[:, domain.index, is_old_V] = old.first_NDV[:, source, old_id_V[is_old_V]]
            spread_DV[domain.index, is_old_V] = old.spread_DV[source, old_id_V[is_old_V]]
    if old.common_N is None or old.common_spread_V is None:
        return RoutingTable(first_NDV, spread_DV, experts, **of_rows)
    # common segments likewise, with one table for all domains
    drawn = draw(config.routing.seed, None if frequencies_DV is None else frequencies_DV.sum(axis=0, keepdims=True))
    is_common_N, spread_V = old.common_N > 0, old.common_spread_V[old_id_V]
    drawn.first_NDV[:, 0, is_old_V] = old.first_NDV[:, 0, old_id_V[is_old_V]]
    first_NDV[is_common_N] = drawn.first_NDV[is_common_N]  # the entries [1, V] serve all domains
    assert drawn.common_spread_V is not None
    spread_V[~is_old_V] = drawn.common_spread_V[~is_old_V]
    return RoutingTable(first_NDV, spread_DV, experts, old.common_N, spread_V, **of_rows)


def _notes(parent: StoredModel, config: Config, tokenizer: Tokenizer, all_copied: bool) -> list[str]:
    """Return notes of the receipt. all_copied: True if every new domain begins as a copy of a domain of the parent."""
    notes, new_tokens = [], tokenizer.size - parent.tokenizer.size
    if new_tokens:
        notes.append(
            f"{new_tokens:,} tokens more, {tokenizer.size:,} in all: text of old domains may be cut into other tokens than before; "
            "on the same tokens the model answers as before"
        )
    if config.routing.file:  # tables that the parent's user wrote
        notes.append(f"routing.table={config.routing.table} is the parent's; entries that it lacks are drawn at random")
    if config.routing.table == "balanced" and all_copied:
        notes.append("tables are the parent's, so they are balanced for its text and not for that of new domains")
    return notes


def text_cursor(parent: StoredRun, config: Config) -> tuple[Cursor, str]:
    """Return the position at which an extended run begins in the text of its configuration, and a note about it for the receipt.

    The samples that `parent` has taken of its domains are not taken again if the files of these domains are the same, and if their
    order is: it follows from the seed, `data.shuffle` and a domain's place in the list.
    """
    begin, parent_names = Cursor([0] * len(config.domains)), [domain.name for domain in parent.config.domains]
    begin_note = "all text is read from its beginning"
    if parent.data_hash != load_manifest(Path(config.data.path), parent_names).content_hash:
        return begin, f"{begin_note}: it is not that of the run, which `prepare-data --extend` would keep"
    if parent.config.seed != config.seed:
        return begin, f"{begin_note}: with another seed its order is another"
    names = [domain.name for domain in config.domains]
    names_in_place = [name for old_name, name in zip(parent_names, names, strict=False) if old_name == name]
    moved_names = [name for name in names if name in parent_names and name not in names_in_place]
    counts = dict(zip(parent_names, parent.checkpoint.state["cursor"]["taken"], strict=True))
    taken_counts = [counts[name] if name in names_in_place else 0 for name in names]
    notes = [f"the text of {', '.join(names_in_place)} is read on from where the run stands"] if names_in_place else []
    if moved_names:
        text = "that" if names_in_place else "the text"
        reason = "because another place in the list is another order"
        notes.append(f"{text} of {', '.join(moved_names)} is read from its beginning, {reason}")
    return Cursor(taken_counts, list(taken_counts)), "; ".join(notes)
