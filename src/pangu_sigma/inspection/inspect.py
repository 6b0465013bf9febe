"""Size of a configuration, without building the network: parameters, and bytes on the host and on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pangu_sigma.config import Config
from pangu_sigma.domains import chosen_domains
from pangu_sigma.host_memory import row_bytes
from pangu_sigma.results import aligned

_FLOAT32 = 4
_STORED_COPIES = 3
"""Number of stored arrays per parameter: its weight and two Adam moments."""
_PARAMETERS = {"total": "parameters", "dense": "  dense", "experts": "  experts", "embeddings": "  embeddings"}
"""Field of the parameter counts → its label."""


def inspect(config: Config) -> dict[str, Any]:
    """Return the parameter counts and bytes of a configuration as nested dictionaries. Bytes are sums over all ranks.

    Some keys:
        experts.segments: number of experts of each segment (group of experts with a routing table of its own) of an RRE layer,
            and parameters of one expert; [] for a dense model.
        bytes.expert_store…: weights and both Adam moments of all experts in float32; on the host with ECSS, on the device without.
        bytes.active_expert_…: float32 weights and gradients of the experts that a step can activate; ECSS puts no others there.
        bytes.rows_at_most: all rows that the steps of one rank can meet, the only bytes that are not summed.
    """
    model, counts = config.model, config.num_params()
    segments = [
        {"kind": kind, "stored": config.stored_experts(kind)}
        | {"active_at_most": config.active_of(kind), "params_each": model.expert_params(s)}
        for s, kind in enumerate(model.segments if model.rre_layers else [])
    ]
    active_params = config.active_expert_params
    return {
        "name": config.name,
        "params": asdict(counts),
        "layers": {"dense": model.dense_layers, "rre": model.rre_layers, "total": model.layers},
        "domains": len(config.domains),
        "embedding_slots": {"count": config.slots, "rows_each": model.slot_rows},
        "experts": {
            "stored_per_layer": sum(segment["stored"] for segment in segments),
            "active_per_layer_at_most": sum(segment["active_at_most"] for segment in segments),
            "segments": segments,
        },
        "rows": [
            {"order": entry.order, "kind": entry.kind, "stored": config.stored_rows(entry), "width": entry.width}
            for entry in model.rows
        ],
        "tokens_per_step": config.step_tokens,
        "bytes": {
            "expert_store": counts.experts * _FLOAT32 * _STORED_COPIES,
            "expert_store_on": "host" if config.ecss.enabled else "device",
            "active_expert_weights": active_params * _FLOAT32,
            "active_expert_gradients": active_params * _FLOAT32,
            "rows_at_most": row_bytes(config),
            "dense_and_adam": (counts.dense + counts.embeddings) * _FLOAT32 * _STORED_COPIES,
        },
    }


def extraction(config: Config, keep: Sequence[str], drop: Sequence[str]) -> dict[str, Any]:
    """Return the size of a model before and after some domains are extracted with their experts, slots and the shared layers.

    keep, drop: names of the domains to keep or to remove. Raises ConfigError for an unknown domain, or none left.
    """
    names = chosen_domains(config, keep, drop)
    smaller_config = config.model_copy(update={"domains": [d for d in config.domains if d.name in names]})
    return {
        "domains": [d.name for d in smaller_config.domains],
        "before": asdict(config.num_params()),
        "after": asdict(smaller_config.num_params()),
    }


def format_extraction(result: dict[str, Any]) -> str:
    """Format the result of `extraction` as lines of text."""
    before, after = ({key: _short_number(result[time][key]) for key in _PARAMETERS} for time in ("before", "after"))
    rows = [(label, f"{after[key]} of {before[key]}") for key, label in _PARAMETERS.items()]
    return format_rows(f"extracting {', '.join(result['domains'])} leaves", rows)


def format_inspection(inspection: dict[str, Any]) -> str:
    """Format the result of `inspect` as a table."""
    params, layers, experts, bytes_by_key = (inspection[key] for key in ("params", "layers", "experts", "bytes"))
    slots, copies = inspection["embedding_slots"], "weights and two moments"
    sizes = {key: _binary_size(value) for key, value in bytes_by_key.items() if key != "expert_store_on"}
    expert_counts = f"{experts['stored_per_layer']}, at most {experts['active_per_layer_at_most']} in a step"
    rows = [
        *((label, _short_number(params[key])) for key, label in _PARAMETERS.items()),
        ("  met by a token", f"{_short_number(params['active_per_token'])}, without embeddings"),
        ("layers", f"{layers['dense']} dense + {layers['rre']} RRE"),
        ("domains", f"{inspection['domains']}"),
        ("embedding slots", f"{slots['count']} of {slots['rows_each']:,} rows"),
        ("experts in a layer", expert_counts),
        *_segment_rows(experts["segments"]),
        *(
            (f"rows, entry {n}", f"{row['stored']:,} of order {row['order']} ({row['kind']}), width {row['width']}")
            for n, row in enumerate(inspection["rows"])
        ),
        ("tokens in a step", f"{inspection['tokens_per_step']:,}"),
        ("expert store", f"{sizes['expert_store']} on the {bytes_by_key['expert_store_on']}, {copies}"),
        ("active experts", f"{sizes['active_expert_weights']} on the device, and as much for gradients"),
        *([("rows", f"{sizes['rows_at_most']} at most, those that all steps can meet")] if inspection["rows"] else []),
        ("dense parameters", f"{sizes['dense_and_adam']}, {copies}"),
    ]
    return format_rows(inspection["name"], rows)


def format_rows(head: str, rows: Sequence[tuple[str, str]]) -> str:
    """Format pairs of a label and a value as lines of text below a headline."""
    return "\n".join([head, *(f"  {line}" for line in aligned(rows, "<"))])


def _segment_rows(segments: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (label, text) lines on the experts of each segment; of a single segment, or none, only the size of an expert."""
    if len(segments) <= 1:
        return [("one expert", _short_number(segments[0]["params_each"] if segments else 0))]
    return [
        (
            f"  segment {s} ({segment['kind']})",
            f"{segment['stored']}, at most {segment['active_at_most']} in a step, each of {_short_number(segment['params_each'])}",
        )
        for s, segment in enumerate(segments)
    ]


def _short_number(number: int) -> str:
    """Format a number both short and in full: 1085405440000 gives '1.0854T (1,085,405,440,000)'."""
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= unit:
            return f"{number / unit:.5g}{letter} ({number:,})"
    return f"{number:,}"


def _binary_size(number: int) -> str:
    """Format a size in binary units: 2 ** 30 gives '1.0 GiB'."""
    power = min(4, max(0, number.bit_length() - 1) // 10)  # the largest with 1024**power <= number, up to TiB
    return f"{number / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
