"""The page at `/`: one file, and the policy under which browsers show it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

PAGE_FILE = Path(__file__).with_name("page.html")


class Page:
    """The page. Its scripts and styles stand in it and are known by their hashes, so the browser runs nothing that came otherwise,
    and it asks nobody but this server."""

    def __init__(self, file: Path = PAGE_FILE):
        self.content = file.read_bytes()
        self.headers = {"Content-Security-Policy": policy(self.content.decode()), "Cache-Control": "no-cache"}


def policy(html: str) -> str:
    """The Content-Security-Policy of a page whose scripts and styles are inside of it."""
    rules = {
        "default-src": "'none'",
        "script-src": _hashes(html, "script"),
        "style-src": _hashes(html, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",  # text cannot become markup, whatever a script tries
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hashes(html: str, tag: str) -> str:
    found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", html, re.DOTALL | re.IGNORECASE)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
