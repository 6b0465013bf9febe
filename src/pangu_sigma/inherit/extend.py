"""Extension of a trained Σ by domains, slots, English pieces or rows, which changes no bit of its answers for its domains.

    old domains      experts, rows of the routing tables, rows of slots, Adam state and step counts are copied
    common segments  their experts are copied with Adam state, and new domains share them; tables keep the entries of known tokens
    model.rows       rows of old domains and common ones are copied with Adam state; tables keep the numbers of known tokens. A run
                     without rows may get some, which begin at 0
    new domains      experts of a named domain and its row of the routing tables; or the FFN of a dense parent; or drawn. Adam state
                     starts from zero, and so do rows of its own
    new slots        rows of the same tokens of the named domain's slot, or of the dense parent; the rest is drawn from
                     N(0, model.init_std)
    new tokens       rows are drawn; each domain's tables give them a drawn expert

All of this is our choice; the paper says that domains can be added, not how. Tables are drawn from routing.seed and the *name* of
a domain, so they do not depend on other domains or on the order of extensions; those of common segments from routing.seed alone.

Shape suffixes: N segments of all RRE layers, D domains, V vocabulary, K experts of a segment, R rows of a slot.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from pangu_sigma.checkpoint.changes import absolute_paths, change_text, changed_keys, rule_of
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepared import PreparedData, read_prepared_tokenizer
from pangu_sigma.data.samples import open_samples
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.inherit.equality import compare_trained
from pangu_sigma.inherit.parent import ParentWords, looked_up, parent_slot
from pangu_sigma.inherit.receipt import Receipt
from pangu_sigma.inherit.tensor_origin import SlotRows
from pangu_sigma.inherit.text_cursor import text_cursor
from pangu_sigma.inherit.trained import ChildTensors, SlotSource, child_receipt, experts_of, write_child
from pangu_sigma.rre.row_keys import extended_row_tables
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import parent_ids
from pangu_sigma.training.first_checkpoint import check_absent, unfinished_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Source of what is new in an extended run: a domain of the old run, a dense model, or random numbers (scratch). Raises
    ConfigError if several are given."""

    domain: str | None = None
    dense: StoredModel | None = None
    scratch: bool = False

    def __post_init__(self) -> None:
        if sum((self.domain is not None, self.dense is not None, self.scratch)) > 1:
            raise ConfigError(
                f"{argument('--from-domain')}, {argument('--from-dense')} and {argument('--from-scratch')} say where new domains "
                "come from; give one of them"
            )

    @property
    def given(self) -> bool:
        """True if a source is named."""
        return self.domain is not None or self.dense is not None or self.scratch


_OWN_RULE = {
    "seed": "draws what is new",
    "model.init_std": "draws what is new",
    "model.expert_init": "draws what is new",
    "model.slot_rows": "may grow",
    "vocabulary.english_pieces": "tokens are compared, not keys",
    "vocabulary.english_model": "tokens are compared, not keys",
    "vocabulary.keep": "tokens are compared, not keys",
}
"""Keys that an extension may change, though a resumed run may not, and why."""


def check_extension(path: Path, old: Config, new: Config) -> None:
    """Raise ConfigError, which names the keys, if `new` changes keys that an extension cannot change. path: of the run."""
    if old.model.rre_layers == 0:
        raise ConfigError(
            f"{path} is dense (model.rre_layers=0), so it has no experts to add to; `pangu-sigma inherit` makes a sparse run of it"
        )
    problems = [
        f"{change_text(change)}: {rule_of(change[0]).why}"
        for change in changed_keys(old.model_dump(mode="json"), new.model_dump(mode="json"))
        if not change[0].startswith("domains.") and change[0] not in _OWN_RULE and not rule_of(change[0]).free
        if old.model.rows or not change[0].startswith("model.rows.")
    ]
    problems += _changed_domains(old, new)
    had, wanted = old.model, new.model
    if wanted.slot_rows < had.slot_rows:
        problems.append(f"model.slot_rows: {had.slot_rows} → {wanted.slot_rows}: rows can be added, not taken away")
    if problems:
        raise ConfigError(
            f"{path} cannot be extended to this configuration:\n  "
            + "\n  ".join(problems)
            + "\nkeep the run's values (they are "
            f"in {path / 'configuration.json'}) and add to them"
        )


def _changed_domains(old: Config, new: Config) -> list[str]:
    by_name = {each.name: each for each in new.domains}
    problems = []
    for had in old.domains:
        wants = by_name.get(had.name)
        if wants is None:
            problems.append(
                f"domains: {had.name} is missing: keep it; `pangu-sigma extract --drop {had.name}` leaves it away"
            )
            continue
        for key in ("format", "language", "slot"):
            before, after = getattr(had, key), getattr(wants, key)
            if before != after:
                rule = "its rows are in that slot" if key == "slot" else rule_of(f"domains.0.{key}").why
                problems.append(f"domains: {key} of {had.name}: {before} → {after}: {rule}")
    return problems


def plan_extension(parent: StoredModel, config: Config, origin: Origin) -> ChildTensors:
    """Plan the extension of `parent` to a run of `config`, without reading tensors. origin: source of new domains and slots.

    Raises ConfigError for a key that cannot be extended, DataError without text prepared for `config`.
    """
    check_extension(parent.path, parent.config, config)
    _check_origin(parent.config, config, origin)
    tokenizer = _prepared_tokenizer(parent.path, config)
    known_V = parent_ids(parent.tokenizer.vocabulary, tokenizer.vocabulary)
    _check_vocabulary(parent, config, tokenizer, known_V)
    domains, old = domains_of(config), domains_of(parent.config)
    names = {each.name for each in old}
    origins = {each.name: each.name if each.name in names else origin.domain for each in domains}
    of_domain = {name: source for name, source in origins.items() if source is not None}
    none_K = np.full(config.model.experts_per_domain, -1)
    numbers = [experts_of(old.named(of_domain[each.name])) if each.name in of_domain else none_K for each in domains]
    own_K = np.repeat([each.name in names for each in domains], config.model.experts_per_domain)
    return ChildTensors(
        parent,
        absolute_paths(config),
        tokenizer,
        extended_tables(parent, config, tokenizer, known_V, of_domain),
        [_given_rows(parent, config, tokenizer, known_V, name, origin) for name in domains.slot_names],
        np.concatenate(numbers),
        own_K,
        origin.dense,
        of_domain,
    )


def extend_run(path: Path, config: Config, folder: Path, origin: Origin, graphs: bool = True) -> Receipt:
    """Write `folder`, atomically, as a run of `config` that extends the run in `path`; `train` resumes from its step 0.

    The receipt compares the logits of both models for the old domains' text. origin: source of new domains and slots.
    graphs: False to compare logits by the NumPy network of generate/cpu/exact.py alone, which compiles nothing.
    Raises ConfigError if a key of the configuration cannot be extended or `folder` exists, DataError without prepared text.
    """
    check_absent(folder)
    parent = open_model(path, "run")
    child = plan_extension(parent, config, origin)
    text = Path(child.config.data.path)
    open_samples(child.config, text, "train", child.tokenizer.size)
    manifest = load_manifest(text)
    cursor, position = text_cursor(parent, child.config, manifest)
    with unfinished_folder(folder) as fresh:
        run = write_child(fresh, child, manifest.content_hash, cursor)
        same = {name: source for name, source in child.origins.items() if _answers_as(child, name, source)}
        agreement = compare_trained(parent, run, same, text, graphs)
        receipt = child_receipt("extend", child, agreement, _fates(child), notes=[*_notes(child), position])
        receipt.save(fresh)
    return receipt


def _check_origin(old: Config, new: Config, origin: Origin) -> None:
    names = {each.name for each in old.domains}
    added = [each.name for each in new.domains if each.name not in names]
    if added and not origin.given:
        raise ConfigError(
            f"domains: {', '.join(added)}: say what new domains begin as: {argument('--from-domain')} DOMAIN (experts of "
            f"{', '.join(sorted(names))}), {argument('--from-dense')} MODEL (FFN of a dense parent), or "
            f"{argument('--from-scratch')} (drawn)"
        )
    if origin.domain is not None and origin.domain not in names:
        raise ConfigError(
            f"{argument('--from-domain')} {origin.domain}: the run has the domains {', '.join(each.name for each in old.domains)}"
        )
    if origin.dense is not None:
        _check_dense(new, origin.dense)


def _check_dense(config: Config, dense: StoredModel) -> None:
    if config.model.common_experts:
        raise ConfigError(
            f"{argument('--from-dense')} {dense.path}: model.segments={config.model.segments}: units of common segments are the "
            "run's, so a new domain cannot have the FFN of another model; use "
            f"{argument('--from-domain')} or {argument('--from-scratch')}"
        )
    for key in ("hidden", "ffn", "layers"):
        has, wants = getattr(dense.sizes, key), getattr(config.model, key)
        if has != wants:
            raise ConfigError(
                f"{argument('--from-dense')} {dense.path}: its {key} is {has}, this run's is {wants}; they must be equal"
            )
    if dense.sizes.activation != config.model.activation:
        logger.warning(
            "%s %s computes GELU as %s, this run as %s: new domains do not answer quite as it does",
            argument("--from-dense"),
            dense.path,
            dense.sizes.activation,
            config.model.activation,
        )


def _prepared_tokenizer(path: Path, config: Config) -> Tokenizer:
    """Load the tokenizer of the text prepared for a configuration. path: path of the run, for messages."""
    try:
        tokenizer = read_prepared_tokenizer(config)
    except (DataError, ConfigError) as error:
        raise type(error)(f"{error}\n{_keep_ids(path)}") from error
    prepared = load_manifest(Path(config.data.path)).config["domains"]
    cut_as = [[d.name, d.format, d.language, d.slot] for d in config.domains]  # what is held out of them may differ
    if [each[:4] for each in prepared] != cut_as:
        names, wanted = (", ".join(each) for each in ([d[0] for d in prepared], [d.name for d in config.domains]))
        raise ConfigError(
            f"domains: data.path={config.data.path} was prepared for {names}, the configuration has {wanted}, or they differ in "
            f"format, language or slot; prepare its own text\n{_keep_ids(path)}"
        )
    return tokenizer


def _keep_ids(path: Path) -> str:
    return (
        f"to keep the tokens of the run and their rows: pangu-sigma prepare-data CONFIG --set vocabulary.keep={path}, or, to "
        "prepare only text of new domains, --extend with the run's data.path"
    )


def _check_vocabulary(parent: StoredModel, config: Config, tokenizer: Tokenizer, known_V: np.ndarray) -> None:
    """Raise ConfigError if a slot of the run loses the row of a token, or if nothing is new."""
    had = parent.tokenizer
    child_of = np.full(had.size, -1)
    child_of[known_V[known_V >= 0]] = np.flatnonzero(known_V >= 0)
    names = domains_of(config).slot_names
    for slot, name in enumerate(domains_of(parent.config).slot_names):
        ids = had.slot_rows[slot][had.slot_rows[slot] >= 0]
        rows = looked_up(tokenizer.row_of[names.index(name)], child_of[ids])
        lost = ids[rows < 0]
        if len(lost):
            some = ", ".join(repr(had.vocabulary.pieces[token]) for token in lost[:5])
            raise ConfigError(
                f"slot {name}: {len(lost)} of its {len(ids)} tokens have no row in data.path={config.data.path} any more ({some}). "
                f"{_more_rows(tokenizer, child_of[lost])}\n{_keep_ids(parent.path)}"
            )
    same = [each.name for each in config.domains] == [each.name for each in parent.config.domains]
    if (
        same
        and tokenizer.hash == had.hash
        and config.model.experts_per_domain == parent.config.model.experts_per_domain
        and config.model.rows == parent.config.model.rows
    ):
        raise ConfigError(
            f"this configuration has nothing that {parent.path} lacks: add domains, slots, pieces or rows, or go on with "
            f"`pangu-sigma train {parent.path}`"
        )
    if (known_V < 0).any() or had.size != tokenizer.size:
        logger.warning(
            "%s tokens are new: text of old domains may be cut into other tokens than before; on the same tokens they answer as "
            "before",
            f"{int((known_V < 0).sum()):,}",
        )


def _more_rows(tokenizer: Tokenizer, lost: np.ndarray) -> str:
    """Return what a message says of more rows for the tokens `lost`, whose ids are -1 where the new vocabulary lacks them."""
    if (lost < 0).any():
        return "The new vocabulary lacks some of them, so more rows do not help: keep the tokens;"
    return f"Keep them, or prepare and extend with model.slot_rows={tokenizer.size} or more, which holds every token;"


def _given_rows(
    parent: StoredModel, config: Config, tokenizer: Tokenizer, known_V: np.ndarray, name: str, origin: Origin
) -> SlotSource:
    """Return the source of a slot: the run's slot of that name, else the origin's rows by token, else none."""
    old = domains_of(parent.config)
    ids_R = tokenizer.slot_rows[domains_of(config).slot_names.index(name)]
    if name not in old.slot_names and origin.dense is not None:
        words = ParentWords(origin.dense)
        slot = parent_slot(name, words.slots)
        rows_R = words.rows(slot, tokenizer.vocabulary, ids_R)
        return SlotSource(SlotRows(name, words.slots[slot], ids_R, rows_R), own=False, alpha=True)
    own = name in old.slot_names
    if not own and origin.domain is None:
        return SlotSource(SlotRows(name, "", ids_R, np.full_like(ids_R, -1)), own=False)
    slot = old.slot_names.index(name) if own else old.named(origin.domain or "").slot
    rows_R = looked_up(parent.tokenizer.row_of[slot], looked_up(known_V, ids_R))
    if own:  # rows without a token keep their values, too
        its_R = parent.tokenizer.slot_rows[slot]
        unused = (ids_R[: len(its_R)] < 0) & (its_R < 0)
        rows_R[: len(its_R)][unused] = np.flatnonzero(unused)
    first = slot * parent.config.model.slot_rows
    return SlotSource(SlotRows(name, old.slot_names[slot], ids_R, np.where(rows_R >= 0, first + rows_R, -1)), own)


def extended_tables(
    parent: StoredModel, config: Config, tokenizer: Tokenizer, known_V: np.ndarray, origins: dict[str, str]
) -> RoutingTable:
    """Return the routing tables of an extended run: the parent's entries in the domains of `origins`, else drawn ones.

    known_V: the parent's id of each token, -1 for a new token, whose entries are drawn. origins: domain → domain of the parent.
    """
    old, experts = parent.table, config.model.experts_per_domain
    frequencies_DV = PreparedData(Path(config.data.path)).frequencies() if config.routing.table == "balanced" else None
    layers, size, segments = config.model.rre_layers, tokenizer.size, config.model.segments
    first_NDV = np.empty((len(config.model.routed), len(config.domains), size), np.int16)
    spread_DV = np.empty((len(config.domains), size), np.int16)
    kept_V, of_rows = known_V >= 0, {}
    if config.model.rows:
        its_rows = None if old.row_EV is None or old.before_EV1 is None else (old.row_EV, old.before_EV1)
        drawn_rows = extended_row_tables(config.model.rows, its_rows, known_V, config.routing.seed)
        of_rows = dict(zip(("row_EV", "before_EV1"), drawn_rows, strict=True))

    def draw(seed: int, counts: np.ndarray | None) -> RoutingTable:
        kind, common = "random" if config.routing.file else config.routing.table, config.model.common_experts
        routing = config.routing.model_copy(update={"seed": seed, "table": kind})
        return draw_tables(routing, layers, 1, size, experts, counts, segments, common)

    for domain in domains_of(config):
        seed = xxhash.xxh3_64_intdigest(f"{config.routing.seed} {domain.name}".encode()) >> 2
        counts = None if frequencies_DV is None else frequencies_DV[[domain.index]]
        drawn = draw(seed, counts)
        first_NDV[:, domain.index], spread_DV[domain.index] = drawn.first_NDV[:, 0], drawn.spread_DV[0]
        if domain.name in origins:
            source = domains_of(parent.config).named(origins[domain.name]).index
            first_NDV[:, domain.index, kept_V] = old.first_NDV[:, source, known_V[kept_V]]
            spread_DV[domain.index, kept_V] = old.spread_DV[source, known_V[kept_V]]
    if old.common_N is None or old.common_spread_V is None:
        return RoutingTable(first_NDV, spread_DV, experts, **of_rows)
    drawn = draw(config.routing.seed, None if frequencies_DV is None else frequencies_DV.sum(axis=0, keepdims=True))
    common_N, spread_V = old.common_N > 0, old.common_spread_V[known_V]
    drawn.first_NDV[:, 0, kept_V] = old.first_NDV[:, 0, known_V[kept_V]]
    first_NDV[common_N] = drawn.first_NDV[common_N]  # one row for all domains
    if drawn.common_spread_V is not None:
        spread_V[~kept_V] = drawn.common_spread_V[~kept_V]
    return RoutingTable(first_NDV, spread_DV, experts, old.common_N, spread_V, **of_rows)


def _answers_as(child: ChildTensors, name: str, source: str) -> bool:
    """Return True if a domain of the child answers as the parent's domain that it was made of: it is that one, or has the rows of
    its slot, and there are no own rows, which begin at 0 in a new domain."""
    its = domains_of(child.parent.config)
    slot = child.slots[domains_of(child.config).named(name).slot].rows.parent_slot
    copied = name == source or all(entry.kind == "common" for entry in child.config.model.rows)
    return copied and slot == its.slot_names[its.named(source).slot]


def _fates(child: ChildTensors) -> dict[str, str]:
    """Describe what becomes of every domain, for people."""
    names = {each.name for each in child.parent.config.domains}
    rows = ", its own rows 0" if any(entry.kind == "own" for entry in child.config.model.rows) else ""
    drawn = (f"new, its experts the FFN of {child.alpha.path}" if child.alpha else "new, its experts drawn") + rows
    made = {name: f"new, with experts and routing of domain {source}{rows}" for name, source in child.origins.items()}
    return {
        each.name: "as it was" if each.name in names else made.get(each.name, drawn) for each in child.config.domains
    }


def _notes(child: ChildTensors) -> list[str]:
    had, has = child.parent.tokenizer, child.tokenizer
    new = has.size - had.size
    notes = [] if not new else [f"{new:,} tokens more, {has.size:,} in all"]
    if child.config.routing.file:
        notes.append(
            f"routing.table={child.config.routing.table} is the parent's; entries that it lacks are drawn at random"
        )
    if child.config.routing.table == "balanced" and len(child.origins) == len(child.config.domains):
        notes.append("tables are the parent's, so they are balanced for its text and not for that of new domains")
    return notes
