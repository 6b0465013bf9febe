"""A trained model as a folder that needs nothing else (MindIR graph, configuration, tokenizer, routing tables), or as one file."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

import mindspore as ms

from pangu_sigma.checkpoint.run_folder import CONFIG_FILE, ROUTING_FILE, TOKENIZER_FOLDER, RunFolder
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import dump_config
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import UserError
from pangu_sigma.generate.graphs import any_length
from pangu_sigma.generate.predictor import GRAPH_FILE, Predictor, inference_graph
from pangu_sigma.generate.text import generate

logger = logging.getLogger(__name__)

OPENINGS = {"zh": "今天", "en": "The ", "mixed": "文件", "python": "import ", "java": "public "}
"""How a text of each language may begin; something to continue when an export is checked."""


class ExportError(UserError, RuntimeError):
    """An exported model does not answer like the one it came from."""


def export_mindir(run_path: Path, output: Path) -> Path:
    """Write `output` from the newest intact checkpoint of a run. The graph takes any batch size and sequence length.

    The folder appears whole or not at all. Raises ConfigError when `output` exists and is not an exported model.
    """
    if output.exists() and not (output / GRAPH_FILE).exists():
        raise ConfigError(f"{output} exists and is not an exported model; choose another folder with --output")
    run = RunFolder.open(run_path)
    graph = inference_graph(run)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        logger.info("compiling the graph of %s", run.config.name)
        ms.export(graph, *any_length(run.config), file_name=str(folder / GRAPH_FILE), file_format="MINDIR")
        (folder / CONFIG_FILE).write_text(dump_config(run.config), encoding="utf-8")
        run.tokenizer.save(folder / TOKENIZER_FOLDER)
        run.table.save(folder / ROUTING_FILE)
        (folder / GRAPH_FILE).chmod(0o644)  # MindSpore leaves it readable by its owner only
        if output.exists():
            shutil.rmtree(output)
        folder.rename(output)
    return output


def verify_export(run_path: Path, output: Path, tokens: int = 16) -> int:
    """Reload an exported model and compare its greedy tokens with the checkpoint's, one short prompt per domain.

    Returns the number of generated tokens, all equal; an <eot> that ends an answer counts. Raises ExportError when one is not.
    """
    original, reloaded = Predictor.from_run(run_path), Predictor.from_export(output)
    prompts = [(domain.name, OPENINGS[domain.language]) for domain in domains_of(original.config)]
    expected, found = (generate(model, prompts, tokens) for model in (original, reloaded))
    equal = 0
    for domain, one, other in zip(domains_of(original.config), expected, found, strict=True):
        if (one.ids, one.finished) != (other.ids, other.finished):
            raise ExportError(
                f"{output}: greedy tokens of domain {one.domain} are {other.ids}, the checkpoint's are {one.ids}; "
                "do not use this export"
            )
        equal += len(one.ids) - len(original.tokenizer.prompt(one.prompt, domain)) + one.finished
    return equal
