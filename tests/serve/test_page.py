"""The page at `/` runs only what is in it, and asks only this server."""

from __future__ import annotations

import base64
import hashlib

from pangu_sigma.serve.page import policy


def test_scripts_and_styles_are_known_by_their_hashes():
    found = policy("<style>a{}</style><script type='module'>run()</script><script>\n</script>")
    for text in ("run()", "\n", "a{}"):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in found
    assert "unsafe" not in found
    assert "script-src 'none'" in policy("<p>")


def test_the_page_is_served_under_it(client):
    answer = client.get("/")
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert (rules["default-src"], rules["connect-src"], rules["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert rules["style-src"] in policy(answer.text)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
