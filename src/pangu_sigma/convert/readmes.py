"""README.md of exported folders, from templates: the model card of a Hugging Face style folder, the README of a MindIR export."""

from __future__ import annotations

import html
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pangu_sigma.config import ConfigError
from pangu_sigma.data.manifest import Manifest
from pangu_sigma.data.prepared import data_of, encodes
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.stored.model import StoredModel

if TYPE_CHECKING:
    from ascend_ops.few_rows import StoredPrecision

_LANGUAGES = {"zh": ["zh"], "en": ["en"], "mixed": ["zh", "en"], "python": ["code"], "java": ["code"]}


def model_card(model: StoredModel) -> str:
    """Return the text of a model card, with the Hugging Face Hub's YAML header: sizes, versions, domains, origin of the weights,
    data sources and use. It states the licence of the weights as unknown."""
    config = model.config
    met_rows = [len(model.rows(number)[0]) for number in range(len(config.model.rows))]  # by entry
    return _render(
        "model_card.jinja",
        model,
        count=config.num_params(),
        languages=dict.fromkeys(tag for domain in config.domains for tag in _LANGUAGES[domain.language]),
        table=Path(config.routing.table).name,
        met=met_rows,
        parameters_of_rows=sum(n * entry.width for n, entry in zip(met_rows, config.model.rows, strict=True)),
        manifest=_manifest(model),
        version=version("pangu-sigma"),
        first=config.domains[0].name,
        tagged=[domain.name for domain in config.domains if domain.format != "text"],
    )


def export_readme(
    model: StoredModel, signature: dict[str, Any], at_rest: StoredPrecision, openings: dict[str, list[int]]
) -> str:
    """Return the text of the README of a MindIR export: inputs and outputs of its graph, and a program that runs it.

    signature: inputs and outputs of the graph. at_rest: dtype of the stored matrices. openings: domain → token ids of an example
    prompt.
    """
    facts = {"signature": signature, "at_rest": at_rest, "openings": openings}
    return _render("export_readme.jinja", model, tokenizer=model.tokenizer, **facts)


def _render(template: str, model: StoredModel, **facts: Any) -> str:
    """Fill a template of this folder. facts: further variables of the template."""
    loader = FileSystemLoader(Path(__file__).parent)
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(loader=loader, undefined=StrictUndefined, **blocks)
    environment.filters |= {"comma": "{:,}".format, "text": _text, "code": _code}
    config = model.config
    return environment.get_template(template).render(
        model=model, config=config, sizes=config.model, domains=domains_of(config), **facts
    )


def _text(value: object) -> str:
    """Return a value as text of Markdown on one line: names of slots and sources, which may be markup, are shown as they are."""
    return re.sub(r"[\\`*\[\]|~!$]", r"\\\g<0>", html.escape(" ".join(str(value).split()), quote=False))


def _code(value: object) -> str:
    """Return a value as code of Markdown on one line; a backtick, which would end the code, becomes an apostrophe."""
    text = " ".join(str(value).split()).replace("`", "'")
    return f"`{text}`"


def _manifest(model: StoredModel) -> Manifest | str:
    """Return the manifest of the model's prepared data, or the reason why there is none."""
    try:
        data = data_of(model.config)
        same_ids = encodes(model.tokenizer, data.tokenizer(model.config))
    except (DataError, ConfigError):
        return "the prepared data is not there, or is damaged, or lacks a domain"
    if not same_ids or model.data_hash not in (None, data.manifest.content_hash):
        return "the prepared data at hand is not what the model was trained on"
    return data.manifest
