"""Position in the training text of a run that extends another: it goes on where the other one stands, if the text is the same."""

from __future__ import annotations

from pangu_sigma.config import Config
from pangu_sigma.data.manifest import EXTENDS, Manifest
from pangu_sigma.data.order import Cursor
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.run import StoredRun


def text_cursor(parent: StoredModel, config: Config, text: Manifest) -> tuple[Cursor, str]:
    """Return the position at which an extended run begins, and a note about it for the receipt. text: manifest of the run's text.

    The samples that `parent` has taken of its domains are not taken again if their token files are the same, which the manifest of
    data that were prepared with `--extend` says, and if their order is: it follows from the seed, `data.shuffle` and a domain's
    place in the list.
    """
    begin = Cursor([0] * len(config.domains))
    if not isinstance(parent, StoredRun) or not _same_text(parent, text):
        return begin, (
            "all text is read from its beginning: only text that was prepared with `prepare-data --extend` is known to be the run's"
        )
    if parent.config.seed != config.seed:
        return begin, "all text is read from its beginning: with another seed its order is another"
    cursor = parent.checkpoint.state["cursor"]["taken"]
    before = {
        each.name: (index, taken) for index, (each, taken) in enumerate(zip(parent.config.domains, cursor, strict=True))
    }
    taken: list[int] = []
    kept: list[str] = []
    moved: list[str] = []
    for index, each in enumerate(config.domains):
        was, count = before.get(each.name, (index, 0))
        taken.append(count if was == index else 0)
        if each.name in before:
            (kept if was == index else moved).append(each.name)
    notes = [f"the text of {', '.join(kept)} is read on from where the run stands"] if kept else []
    if moved:
        notes.append(
            f"{'that' if kept else 'the text'} of {', '.join(moved)} is read from its beginning, because another place in the list "
            "is another order"
        )
    return Cursor(taken, list(taken)), "; ".join(notes)


def _same_text(parent: StoredRun, text: Manifest) -> bool:
    extends = text.config.get(EXTENDS)
    extended = extends["content_hash"] if isinstance(extends, dict) else None
    return parent.data_hash is not None and parent.data_hash in (text.content_hash, extended)
