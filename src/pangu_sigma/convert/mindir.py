"""Export of a trained model as a MindIR folder that needs nothing else.

model.mindir           the graph: `generate/graph/cached.py`; if it has more than 1 GiB, its values are in model_variables/
tables.safetensors     lookup tables from token ids to experts and embedding rows, as plain tensors
configuration.json  tokenizer/  routing.npz  as in a run folder
README.md              inputs and outputs of the graph, and a program of MindSpore alone that runs it; it may be edited
seal.json              size and hash of every other file, and the signature of the graph; all are verified before use
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pangu_sigma.checkpoint.model_files import ROUTING_FILE, TOKENIZER_FOLDER, seal_model_files, write_config
from pangu_sigma.checkpoint.safetensors_file import write_arrays
from pangu_sigma.convert.readmes import export_readme
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import UserError
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.text import open_engine
from pangu_sigma.process import use_cpu
from pangu_sigma.stored.export import GRAPH_FILE
from pangu_sigma.stored.hf_folder import table_tensors
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.text.tokenizer import copy_tokenizer
from pangu_sigma.training.first_checkpoint import unfinished_folder

if TYPE_CHECKING:
    from ascend_ops.few_rows import StoredPrecision
    from pangu_sigma.generate.graph.cached import CachedGraph

logger = logging.getLogger(__name__)

OPENINGS = {"zh": "今天", "en": "The", "mixed": "文件", "python": "import", "java": "public"}
"""Prompt of each language, for comparing an exported model with its run."""

TABLES_FILE = "tables.safetensors"
README_FILE = "README.md"


class ExportError(UserError, RuntimeError):
    """Error of an exported model that generates other tokens than the run it came from."""


def export_mindir(
    run_path: Path,
    output: Path,
    at_rest: StoredPrecision = "float32",
    use_device: Callable[[], None] = use_cpu,
    compared_tokens: int = 0,
) -> Path:
    """Export the newest intact checkpoint of a run as a MindIR folder `output`. The graph takes any batch size and sequence length.

    at_rest: dtype of the stored matrices. use_device: sets the device whose operators the graph uses. compared_tokens: number of
    greedy tokens of each domain that `verify_export` compares before the folder gets its name; 0: none. The folder is created
    atomically. Raises ConfigError, before any work, if `output` exists or cannot be written.
    """
    with unfinished_folder(output) as folder:
        run = open_model(run_path, "run")
        from pangu_sigma.generate.graph.cached import cached_graph, inputs_and_outputs

        use_device()
        graph = cached_graph(run, at_rest)
        logger.info("compiling the graph of %s", run.config.name)
        write_graph(graph, folder)
        del graph  # its weights
        copy_tokenizer(run_path / TOKENIZER_FOLDER, folder / TOKENIZER_FOLDER)
        run.table.save(folder / ROUTING_FILE)
        write_arrays(folder / TABLES_FILE, tables(run))
        write_config(folder, run.config, "export")
        signature = inputs_and_outputs(run.config)
        openings = {d.name: run.tokenizer.prompt(OPENINGS[d.language], d) for d in domains_of(run.config)}
        # a large graph has several files
        files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        seal_model_files(folder, {"signature": signature, "weights": at_rest}, files)
        (folder / README_FILE).write_text(export_readme(run, signature, at_rest, openings), encoding="utf-8")
        if compared_tokens:
            verify_export(run, folder, compared_tokens)
    return output


def write_graph(graph: CachedGraph, folder: Path) -> None:
    """Write the graph of an export as the MindIR file GRAPH_FILE of a folder, with shortened parameter names."""
    import mindspore as ms

    from pangu_sigma.generate.graph.cached import open_inputs

    stem_file = folder / GRAPH_FILE
    ms.export(graph, *open_inputs(), file_name=str(stem_file), file_format="MINDIR", custom_func=_shorten_names)
    separate_graph = stem_file.with_name(f"{stem_file.stem}_graph.mindir")
    if separate_graph.exists():  # its values are in other files
        separate_graph.rename(stem_file)
    for path in folder.rglob("*"):  # MindSpore leaves them readable by their owner only
        path.chmod(0o755 if path.is_dir() else 0o644)


def tables(run: StoredModel) -> dict[str, np.ndarray]:
    """Return the lookup tables of an exported model, from token ids to experts and embedding rows, as arrays by name."""
    tokenizer = run.tokenizer
    return table_tensors(run.table, run.config) | {
        "slot_of_domain": np.array([domain.slot for domain in domains_of(run.config)], np.int32),
        "row_of_id": tokenizer.row_of.astype(np.int32),
        "id_of_row": tokenizer.slot_rows.astype(np.int32),
    }


def _shorten_names(model: Any) -> None:
    """Shorten the names in a ModelProto, which MindSpore prefixes with a function and numbers; names of inputs also lose their
    axes."""
    prefix = f"{model.graph.name}:"
    input_names = {graph_input.name for graph_input in model.graph.input}

    def short(name: str) -> str:
        return (name.rsplit("_", 1)[0] if name in input_names else name).removeprefix(prefix)

    _rename_strings(model, short)
    model.graph.name = "pangu_sigma"


def _rename_strings(message: Any, short: Callable[[str], str]) -> None:
    """Replace each string of a protobuf message, and of the messages inside it, by `short(string)`."""
    for field, value in message.ListFields():
        if isinstance(value, str):
            setattr(message, field.name, short(value))
        elif field.type == field.TYPE_MESSAGE:  # one, or several
            for item in [value] if hasattr(value, "ListFields") else value:
                _rename_strings(item, short)
        elif field.type == field.TYPE_STRING:
            value[:] = [short(item) for item in value]


def verify_export(run: StoredModel, output: Path, tokens: int) -> int:
    """Reload an exported graph and compare its greedy tokens with the decoder's without MindSpore, one prompt per domain.

    The decoder reads the run's checkpoint for an export in float32, otherwise the export's rounded weights.

    Returns the number of generated tokens, including an <eot> that ends an answer. Raises ExportError if a token differs.
    """
    from pangu_sigma.generate.graph.exported import ExportedGraph

    export = open_model(output, "export")
    graph, total = ExportedGraph.load(export), 0
    is_exact = export.facts["weights"] == "float32"
    engine = open_engine(run if is_exact else output)
    for domain in domains_of(export.config):
        ids = export.tokenizer.prompt(OPENINGS[domain.language], domain)
        (answer,) = engine.complete([Request(domain, tuple(ids), tokens)])
        expected_ids = [token.id for token in answer.tokens]
        exported_ids = graph.continue_greedily(domain, ids, len(expected_ids))
        if exported_ids != expected_ids:
            raise ExportError(
                f"greedy tokens of domain {domain.name} are {exported_ids} in the export, and the checkpoint's are {expected_ids}; "
                "nothing was written"
            )
        total += len(expected_ids)
    reference = "of the checkpoint" if is_exact else "that its weights give without MindSpore"
    logger.info("reloaded, and %d greedy tokens equal those %s", total, reference)
    return total
