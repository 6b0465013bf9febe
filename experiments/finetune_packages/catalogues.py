"""English messages of programs and their Chinese translations, from catalogues that packages ship: another task than pre-training's
`bilingual` text, with other programs (data/packaged/packages.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.finetune_packages.decontaminate import Example, TaskSplit
from pangu_sigma.data.packaged.packages import CHINESE_CATALOGUE, Archive, members
from pangu_sigma.data.packaged.translations import catalogue_pairs

_TUNING = (
    Archive(
        "misago",
        "0.39.6",
        "misago-0.39.6-py3-none-any.whl",
        "GPL-2.0-only",
        "57152ffa4d5d567803594b49163a7b399e93fab438f99ab4a463459936eb9f00",
    ),
    Archive(
        "pretix",
        "2026.8.0",
        "pretix-2026.8.0-py3-none-any.whl",
        "AGPL-3.0-only with additional terms",
        "a78932e698778d873530d67f25a57c28d1c09b1bfb1a22ec817c00d90397db85",
    ),
    Archive(
        "django-oscar",
        "4.2.1",
        "django_oscar-4.2.1-py3-none-any.whl",
        "BSD-3-Clause",
        "adbb95ea0130859c204cc6fb221052d6d437ecbaa90800e8418a809f72645e9c",
    ),
    Archive(
        "calibreweb",
        "0.6.27",
        "calibreweb-0.6.27-py3-none-any.whl",
        "GPL-3.0-or-later",
        "c6d4173d31a4495e09c615857f30f0d03d9f7eabc7bb50558164f67083d4f72d",
    ),
    Archive(
        "ckan",
        "2.12.0",
        "ckan-2.12.0-py3-none-any.whl",
        "AGPL-3.0-or-later",
        "3b41cb4860286813fbcd18c57341e96edba266e2e492aeea92c4e03ce9e2934e",
    ),
    Archive(
        "django-cms",
        "5.1.3",
        "django_cms-5.1.3-py3-none-any.whl",
        "BSD-3-Clause",
        "acf31919aab389d2bea253efa97a901bf55e96046a252f23a7a742e495848a5e",
    ),
    Archive(
        "django-allauth",
        "65.21.1",
        "django_allauth-65.21.1-py3-none-any.whl",
        "MIT",
        "7bdf018c9f3f0a32c80677f84e7777272d9c833b180bd6734314c4831c802a9e",
    ),
    Archive(
        "mailman",
        "3.3.10",
        "mailman-3.3.10-py3-none-any.whl",
        "GPL-3.0-or-later",
        "0f63ed38efa938357074e993d6a9b2d81bedaab92f5b3ecdd519890259893f37",
    ),
)
_DEV = (
    Archive(
        "deluge",
        "2.2.0",
        "deluge-2.2.0-py3-none-any.whl",
        "GPL-3.0-or-later",
        "5ac4ce734d92a1a0c36a3b89db447967175a986c06e84ec9cc61ca73e88bf0b5",
    ),
)
_TEST = (
    Archive(
        "nicotine-plus",
        "3.3.11",
        "nicotine_plus-3.3.11-py3-none-any.whl",
        "GPL-3.0-or-later",
        "57a5fdf5f4d3ca993bfd3e086348c95536557cfa68569c0fc03b21f5c8d4307a",
    ),
    Archive(
        "Trac",
        "1.6",
        "Trac-1.6-py3-none-any.whl",
        "BSD-3-Clause",
        "5ff2f3394ebee7cc5b8ee465871cfdecb78ee492a74215b47b6d9ddbcc93b5f7",
    ),
)
PROGRAMS = {"train": _TUNING, "dev": _DEV, "test": _TEST}
"""Programs by split; none of them is in two splits, or in pre-training."""


def translations(archives: Sequence[Archive], files: Mapping[Archive, Path]) -> TaskSplit:
    """The messages of some programs: an English one as the prompt, its translation as the response.

    Messages of several lines are left out, and counted: an answer ends with its line.
    """
    examples, counts = [], Counter[str]()
    for archive in archives:
        for name, content in members(files[archive], CHINESE_CATALOGUE):
            for chinese, english in catalogue_pairs(content):
                if "\n" in chinese or "\n" in english:
                    counts["several lines"] += 1
                else:
                    examples.append(Example(english, chinese, english, f"{archive.file}:{name}"))
    return TaskSplit(archives, examples, counts)
