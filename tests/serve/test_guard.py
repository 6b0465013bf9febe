"""Who may ask, under which name, with how much."""

from __future__ import annotations

import pytest
from helpers.served import client_of

from pangu_sigma.config import ConfigError
from pangu_sigma.serve.guard import HostNames, is_local
from pangu_sigma.serve.server import Address, bind

ASKED = {"model": "sigma-en", "prompt": "the", "max_tokens": 1}


OWN = ["127.0.0.1:8000", "localhost", "LocalHost:8000", "[::1]:8000", "127.9.9.9", "proxy.example"]
FOREIGN = ["evil.example", "evil.example:8000", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example"]
FOREIGN += ["user@localhost", "localhost:8000:1", "", "local host"]


@pytest.mark.parametrize("host", [*OWN, *FOREIGN])
def test_only_own_names_are_known(host):
    assert HostNames("127.0.0.1", ["Proxy.example"]).knows(host) is (host in OWN)


@pytest.mark.parametrize("name", ["http://x.org/", "", "a b", "x.org:8000", "x.org/", "*", "*.x.org"])
def test_a_name_that_no_request_can_have_is_refused(name):
    with pytest.raises(ConfigError, match=rf"allow_host={name!r} is no name of a host".replace("*", r"\*")):
        bind(Address(port=0, others=[name]))
    assert HostNames("127.0.0.1", ["[2001:db8::1]", "2001:db8::2"]).knows("[2001:DB8::1]:80")


def test_a_server_for_all_knows_every_address_and_no_name():
    names = HostNames("0.0.0.0")
    assert names.knows("10.0.0.1:80")
    assert names.knows("[2001:db8::1]")
    assert not names.knows("evil.example")
    assert HostNames("box.lan").knows("box.lan:8000")


def test_local_is_what_only_this_machine_reaches():
    hosts = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::", "10.0.0.1", "box")
    assert [is_local(host) for host in hosts] == [True] * 3 + [False] * 4


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/completions"])
def test_a_foreign_name_or_page_is_refused(client, path):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 403, answer.text
        assert answer.json()["error"]["code"] in ("foreign_host", "foreign_origin")
    assert client.get("/health", headers={"Origin": "http://localhost:8000"}).status_code == 200


def test_no_other_site_gets_leave_to_ask(client):
    answer = client.options(
        "/v1/completions", headers={"Origin": "http://127.0.0.1:1", "Access-Control-Request-Method": "POST"}
    )
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]
    plain = client.post("/v1/completions", content='{"model": "sigma-en"}', headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415, "what a form can send without asking the browser is not read"
    assert plain.headers["x-content-type-options"] == "nosniff"


def test_a_key_is_needed_where_there_is_one(decoder):
    with client_of(decoder, key="secret") as client:
        for header in (None, "Bearer wrong", "Bearer", "Basic secret", "Bearer sécret".encode()):
            for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/tokenizer_info"):
                answer = client.get(path, headers={"Authorization": header} if header else {})
                assert answer.status_code == 401, (path, header)
                assert answer.headers["www-authenticate"] == "Bearer"
            assert client.post("/v1/completions", json=ASKED).status_code == 401
        assert client.get("/health").status_code == client.get("/").status_code == 200
        key = {"Authorization": "Bearer secret"}
        assert client.post("/v1/completions", json=ASKED, headers=key).status_code == 200


def test_a_body_that_is_too_large_is_refused(decoder):
    with client_of(decoder, body_kib=1) as client:
        large = ASKED | {"prompt": "x" * 1100}
        assert client.post("/v1/completions", json=ASKED).status_code == 200
        answer = client.post("/v1/completions", json=large)
        assert answer.status_code == 413
        assert "more than 1 KiB" in answer.json()["error"]["message"]
        chunks = (b"x" * 400 for _ in range(4))
        answer = client.post("/v1/completions", content=chunks, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        lying = {"Content-Type": "application/json", "Content-Length": "9" * 30}
        assert client.post("/v1/completions", content="{}", headers=lying).status_code == 413


def test_a_path_may_name_the_model(client):
    assert client.post("/sigma-en/v1/completions", json=ASKED).status_code == 200
    assert client.post("/sigma-zh/v1/completions", json=ASKED).status_code == 400, "the body says another one"
    assert client.get("/sigma-zh/health").status_code == 200
    for path in ("/sigma-xx/health", "/sigma-zh", "/sigma-zh/sigma-zh/health", "/%2e%2e/%2e%2e/etc/passwd"):
        assert client.get(path).status_code == 404, path
