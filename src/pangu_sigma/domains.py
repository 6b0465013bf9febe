"""Domains: the first level of Random Routed Experts. A sample's domain selects its group of experts, embedding slot and format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.errors import argument


@dataclass(frozen=True)
class Domain:
    """Domain of a run. index: position in the configuration's list, which is its number in data and plans. slot: index of the
    embedding slot that it reads from and predicts with. first_expert, experts: first and count of its experts in an own segment."""

    index: int
    name: str
    format: str
    language: str
    slot: int
    first_expert: int
    experts: int
    weight: float


class Domains(list[Domain]):
    """Domains of a configuration, by index and by name. slot_names: names of the embedding slots."""

    def __init__(self, domains: Iterable[Domain], slot_names: list[str]):
        super().__init__(domains)
        self.slot_names = slot_names

    def named(self, name: str) -> Domain:
        """Return the domain called `name`. Raises ConfigError, which lists the existing names, for an unknown name."""
        for domain in self:
            if domain.name == name:
                return domain
        names = ", ".join(domain.name for domain in self)
        raise ConfigError(f"unknown domain {name!r}; this configuration has {names}")

    def in_slot(self, slot: int) -> list[Domain]:
        """Return the domains that share an embedding slot. slot: index of the slot."""
        return [d for d in self if d.slot == slot]

    def languages(self, slot: int) -> set[str]:
        """Return the languages of the domains that share an embedding slot."""
        return {d.language for d in self.in_slot(slot)}


def domains_of(config: Config) -> Domains:
    """Return the domains of a configuration: experts are numbered domain by domain, slots in order of first use."""
    slot_names = list(dict.fromkeys(d.slot for d in config.domains))
    experts = config.model.experts_per_domain
    domains = (
        Domain(i, d.name, d.format, d.language, slot_names.index(d.slot), i * experts, experts, d.weight)
        for i, d in enumerate(config.domains)
    )
    return Domains(domains, slot_names)


def matching_slot(name: str, names: Sequence[str]) -> int | None:
    """Return the index of the slot `name` in another run, else 0 if that run has only one slot, else None. names: its slots."""
    if name in names:
        return names.index(name)
    return 0 if len(names) == 1 else None


def chosen_domains(config: Config, keep: Sequence[str], drop: Sequence[str]) -> list[str]:
    """Return the names of the domains to keep, in the configuration's order. Raises ConfigError for unknown names, if none would
    remain, and unless one of `keep` and `drop` is empty."""
    names = [domain.name for domain in config.domains]
    if bool(keep) == bool(drop):
        options = f"the domains to keep with {argument('--keep')}, or those to leave away with {argument('--drop')}"
        raise ConfigError(f"name {options}, not {'both' if keep else 'neither'}; there are {', '.join(names)}")
    for name in (*keep, *drop):
        domains_of(config).named(name)  # raises for an unknown name
    remaining = [name for name in names if name in keep] if keep else [name for name in names if name not in drop]
    if not remaining:
        raise ConfigError(f"{argument('--drop')} {', '.join(drop)}: no domain would be left; leave at least one")
    return remaining
