"""Extraction of domains from a trained Σ as a separate run with bit-identical answers, which can be trained further.

A domain never uses experts of other domains, and no gate weighs an expert's output, so nothing is lost. Shared layers, common
segments, and experts, slots and rows of the routing tables of the domains are copied. Tokens keep their ids.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pangu_sigma.checkpoint.changes import absolute_paths, change_text, changed_keys
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.convert.mindir import export_mindir
from pangu_sigma.data.prepared import data_of, encodes
from pangu_sigma.domains import chosen_domains, domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.inherit.child import Child, new_run_from
from pangu_sigma.inherit.receipt import WARM, Receipt
from pangu_sigma.sections import ParallelConfig
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.first_checkpoint import unfinished_folder

logger = logging.getLogger(__name__)


def extracted_config(config: Config, kept: Sequence[str], data: Path) -> Config:
    """Return `config` changed for a run that has the domains `kept` only. data: folder of prepared text with them.

    The run is one of a single process, until it is asked for more; changes are logged.
    """
    config = absolute_paths(config)
    tree = config.model_dump(mode="json")
    tree["domains"] = [domain for domain in tree["domains"] if domain["name"] in kept]
    # as many domains in a batch, and as many sets of domains, as before, or else the next smaller numbers that divide
    counts = range(min(config.data.domains_per_step, len(kept)), 0, -1)
    per_step = next(count for count in counts if config.train.batch_size % count == 0)
    sets = next(n for n in range(config.data.domain_sets, 0, -1) if len(kept) % n == per_step % n == 0)
    # phases belong to the whole run, and may name domains that are gone
    tree["data"] |= {"path": str(data.absolute()), "phases": [], "domain_sets": sets, "domains_per_step": per_step}
    tree["parallel"] = ParallelConfig().model_dump(mode="json")
    tree["finetune"] = None  # it can be trained again
    child = parse_config(tree)
    for change in changed_keys(config.model_dump(mode="json"), child.model_dump(mode="json")):
        if not change[0].startswith(("domains.", "finetune")) and change[0] != "data.path":
            why = f"the run has {len(kept)} of {len(config.domains)} domains"
            if change[0].startswith("parallel."):
                why = "the run is of one process"
            logger.warning("%s, because %s", change_text(change), why)
    return child


def plan_extraction(parent: StoredModel, kept: Sequence[str], data: Path) -> Child:
    """Plan a run with the domains `kept` of `parent`, without reading tensors. data: folder of prepared text with them."""
    domains, table = domains_of(parent.config), parent.table
    config = extracted_config(parent.config, kept, data)
    slots = [domains.slot_names.index(name) for name in domains_of(config).slot_names]
    tokenizer = parent.tokenizer.with_rows(parent.tokenizer.slot_rows[slots])
    indices = [domains.named(name).index for name in kept]
    table = replace(table, first_NDV=table.first_NDV[:, indices], spread_DV=table.spread_DV[indices])
    child = Child.of_run("extract", parent, config, tokenizer, table, {name: name for name in kept})  # new: old
    child.domains = {domain.name: "as it was" if domain.name in kept else "left away" for domain in domains}
    return child


def extract_domains(
    path: Path,
    output: Path,
    kept: Sequence[str] = (),
    dropped: Sequence[str] = (),
    data: Path | None = None,
    export: bool = False,
) -> Receipt:
    """Write `output`, atomically, as a run of some domains of the run in `path`; `train` resumes from its step 0 with Adam state.

    The receipt compares the logits of both runs for held-out text.
    kept, dropped: names of domains; give one of the two. data: prepared text with these domains, by default that of the run; it is
    the new run's data.path. Where it is missing, the new run cannot be trained, which is logged. export: True to write an exported
    model (MindIR) instead of a run, whose greedy tokens are compared with the run's.
    Raises ConfigError, CheckpointError and DataError.
    """
    with unfinished_folder(output) as new_folder:
        parent = open_model(path, "run")
        names = chosen_domains(parent.config, kept, dropped)
        child = plan_extraction(parent, names, data or Path(parent.config.data.path))
        data_hash = _text_hash(child, data)
        text = None if data_hash is None else Path(child.config.data.path)
        if export:
            run_folder = new_folder.parent / f".{new_folder.name}"
            receipt = new_run_from(child, run_folder, None, text)  # never trained, so without the hash of its text
            new_folder.rmdir()  # `export_mindir` makes the folder itself, and refuses one that exists
            export_mindir(run_folder, new_folder, compared_tokens=16)
            receipt.save(new_folder)
            return receipt
        child.notes.insert(0, WARM)
        return new_run_from(child, new_folder, data_hash, text)


def _text_hash(child: Child, data: Path | None) -> str | None:
    """Return the hash of a child's prepared text. If the text is missing, warn and return None, or raise DataError if the user
    named its folder, `data`."""
    try:
        prepared = data_of(child.config)
        if encodes(child.tokenizer, prepared.tokenizer(child.config)):
            return prepared.manifest.content_hash
        problem = f"{prepared.folder} was prepared with another tokenizer"
    except (DataError, ConfigError) as error:
        problem = str(error)
    if data is not None:
        raise DataError(f"{argument('--data')} {data}: is not the prepared text of {child.parent.path}: {problem}")
    logger.warning(
        "the text of %s is not at hand (%s): logits are compared on tokens that are drawn, and a run without text cannot be "
        "trained; to have it, name the text with %s and extract again, or set data.path",
        *(child.parent.path, problem, argument("--data")),
    )
    return None
