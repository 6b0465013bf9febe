"""Readers of known corpora, for `--reader examples/corpora.py:wudao`: records become {"text": …, "domain": …}.

Change them to your domains: a label that decides the domain is one line more. A reader that returns None leaves a record out.
"""

from __future__ import annotations


def wudao(record: dict) -> dict:
    """WuDaoCorpora 2.0, the 200 GB: arrays with a title and a text (a record: https://github.com/xubuvd/LLMs)."""
    parts = [part for part in (record["title"], record["content"]) if part and part.strip()]
    return {"text": "\n".join(parts), "domain": "zh"}


def skypile(record: dict) -> dict:
    """SkyPile-150B: lines of text without a label (https://huggingface.co/datasets/Skywork/SkyPile-150B)."""
    return {"text": record["text"], "domain": "zh"}
