"""A trained model as a folder that needs nothing else: MindIR graph, configuration, tokenizer, routing tables.

`seal.json` has size and hash of every file, and the signature of the graph (generate/graphs.py): what it takes and gives. All of
it is checked before the folder is used.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms

from pangu_sigma.checkpoint.model_files import (
    ROUTING_FILE,
    TOKENIZER_FOLDER,
    seal_model_files,
    write_config,
)
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import UserError
from pangu_sigma.generate.graphs import any_length, signature
from pangu_sigma.generate.predictor import GRAPH_FILE, inference_graph
from pangu_sigma.generate.text import generate, open_engine

logger = logging.getLogger(__name__)

OPENINGS = {"zh": "今天", "en": "The ", "mixed": "文件", "python": "import ", "java": "public "}
"""How a text of each language may begin; something to continue when an export is checked."""


class ExportError(UserError, RuntimeError):
    """An export that cannot be written, or does not answer like the model it came from."""


def export_mindir(run_path: Path, output: Path) -> Path:
    """Write `output` from the newest intact checkpoint of a run. The graph takes any batch size and sequence length.

    The folder appears whole or not at all. Raises ConfigError when `output` exists and is not an exported model, and, before any
    work, ExportError when it cannot be written.
    """
    if output.exists() and not (output / GRAPH_FILE).exists():
        raise ConfigError(f"{output} exists and is not an exported model; choose another folder with --output")
    run = RunFolder.open(run_path)
    with _unfinished(output) as temporary:
        folder = temporary / output.name
        folder.mkdir()
        graph = inference_graph(run)
        logger.info("compiling the graph of %s", run.config.name)
        ms.export(graph, *any_length(run.config), file_name=str(folder / GRAPH_FILE), file_format="MINDIR")
        (folder / GRAPH_FILE).chmod(0o644)  # MindSpore leaves it readable by its owner only
        shutil.copytree(run_path / TOKENIZER_FOLDER, folder / TOKENIZER_FOLDER)
        run.table.save(folder / ROUTING_FILE)
        write_config(folder, run.config, "export")
        files = [
            str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()
        ]  # large graphs have several
        seal_model_files(folder, {"signature": signature(run.config)}, files)
        if output.exists():
            output.rename(temporary / "replaced")
        folder.rename(output)
    return output


@contextmanager
def _unfinished(output: Path) -> Iterator[Path]:
    """A folder beside `output`, where what is not finished is. Raises ExportError if it cannot be made."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-")
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error.strerror}; choose another --output") from error
    with folder as name:
        yield Path(name)


def verify_export(run_path: Path, output: Path, tokens: int = 16) -> int:
    """Reload an exported model and compare its greedy tokens with the checkpoint's, one short prompt per domain.

    Returns the number of generated tokens, all equal; an <eot> that ends an answer counts. Raises ExportError when one is not.
    """
    original, reloaded = open_engine(run_path, "run"), open_engine(output, "export")
    domains, tokenizer = domains_of(original.decoder.config), original.decoder.tokenizer
    prompts = [(domain.name, OPENINGS[domain.language]) for domain in domains]
    expected, found = (generate(engine, prompts, tokens) for engine in (original, reloaded))
    equal = 0
    for domain, one, other in zip(domains, expected, found, strict=True):
        if (one.ids, one.finished) != (other.ids, other.finished):
            raise ExportError(
                f"{output}: greedy tokens of domain {one.domain} are {other.ids}, the checkpoint's are {one.ids}; "
                "do not use this export"
            )
        equal += len(one.ids) - len(tokenizer.prompt(one.prompt, domain)) + one.finished
    return equal
