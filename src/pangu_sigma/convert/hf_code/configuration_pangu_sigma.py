"""Configuration of a PanGu-Σ for transformers 5: every key of the folder's `config.json`."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class PanGuSigmaConfig(PretrainedConfig):
    """domains: for each, its name and the number of its embedding slot. domain: name of that of calls that name none.

    expert_segments: for each segment of an RRE layer's FFN, `own` or `common`. rows: entries of rows, if the model has some, and
    rows_met: how many of each are stored. Sizes, such as `hidden_size`, are others.
    """

    model_type = "pangu_sigma"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012 (transformers adds it to a list)

    def __init__(
        self, domains: list[dict[str, Any]] | None = None, domain: str | None = None, rows: list[dict[str, Any]] | None = None,
        rows_met: list[int] | None = None, **others: Any,
    ):  # fmt: skip
        self.domains = domains or []
        self.domain = domain or (self.domains[0]["name"] if self.domains else None)
        self.rows, self.rows_met = rows or [], rows_met or []
        super().__init__(**others)

    def domain_number(self, domain: str | int) -> int:
        """Return the number of a domain. Raises ValueError, which names the domains, for another name or number."""
        names = [entry["name"] for entry in self.domains]
        if type(domain) is int and 0 <= domain < len(names):
            return domain
        if domain not in names:
            raise ValueError(f"domain={domain!r} is unknown; this model has {', '.join(names)}")
        return names.index(domain)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return every key for `config.json`: pangu-sigma compares them when the folder comes back."""
        return self.to_dict()
