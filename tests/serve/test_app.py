"""The official client, the paths, and requests drawn from the server's own schema."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
import schemathesis
from helpers.served import DrawnDecoder, client_of, served_app, server_of
from hypothesis import HealthCheck, assume, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def url(tiny_data) -> Iterator[str]:
    with server_of(DrawnDecoder(tiny_data), key="secret") as url:
        yield url


@pytest.fixture(scope="module")
def official(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_the_official_client_completes(official):
    assert [model.id for model in official.models.list()] == ["sigma-zh", "sigma-en", "sigma-code"]
    assert official.models.retrieve("sigma-zh").owned_by == "pangu-sigma"
    asked = {"model": "sigma-en", "prompt": "the", "max_tokens": 9, "seed": 1, "echo": True, "logprobs": 2}
    whole, stream = official.completions.create(**asked), official.completions.create(**asked, stream=True)
    parts = list(stream)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    extra = official.completions.create(
        model="sigma-en", prompt="the", max_tokens=2, extra_body={"top_k": 1, "experts": True}
    )
    assert len(extra.choices[0].logprobs.experts) == 2


def test_the_official_client_chats(official):
    asked = {"model": "sigma-en", "messages": MESSAGES, "seed": 1, "max_completion_tokens": 9}
    whole = official.chat.completions.create(**asked)
    stream = official.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *parts, last = stream
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert last.usage == whole.usage


def test_the_official_client_reads_refusals(official, url):
    with pytest.raises(openai.NotFoundError, match="the nearest is sigma-zh"):
        official.completions.create(model="zh", prompt="the")
    with pytest.raises(openai.BadRequestError, match="temperature") as error:
        official.completions.create(model="sigma-en", prompt="the", temperature=3)
    assert (error.value.param, error.value.code, error.value.type) == (
        "temperature",
        "invalid_value",
        "invalid_request_error",
    )
    with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_paths_that_do_not_exist_are_said_in_the_same_form(client):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405), ("PUT", "/health", 405)):
        answer = client.request(method, path, **({"json": {}} if method == "PUT" else {}))
        assert answer.status_code == status
        assert path in answer.json()["error"]["message"]
        assert ("allow" in answer.headers) is (status == 405)


def test_health_says_when_the_engine_has_failed(tiny_data):
    from fastapi.testclient import TestClient

    class Broken(DrawnDecoder):
        def read(self, chunks):
            raise ValueError("broken")

    app = served_app(Broken(tiny_data))
    with TestClient(app) as client:
        for _ in range(3):
            assert client.get("/health").status_code == 200
            answer = client.post("/v1/completions", json={"model": "sigma-en", "prompt": "x"})
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "model_failed"
            assert "the server's log says why" in answer.json()["error"]["message"]
        app.state.served.thread._thread.join()
        assert client.get("/health").status_code == 503
        answer = client.post("/v1/completions", json={"model": "sigma-en", "prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_stopping")


ASKED = {"model": "sigma-en", "prompt": "the", "max_tokens": 1}


def test_a_foreign_name_is_refused(client):
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400


def test_no_other_site_gets_leave_to_ask(client):
    """A page's JSON needs a preflight request, which is refused; without one its body is not JSON (tests of wrong kinds)."""
    answer = client.options(
        "/v1/completions", headers={"Origin": "http://127.0.0.1:1", "Access-Control-Request-Method": "POST"}
    )
    assert answer.status_code == 405
    asked = client.post("/v1/completions", json=ASKED, headers={"Origin": "http://evil.example"})
    for headers in (answer.headers, asked.headers):
        assert not [name for name in headers if name.startswith("access-control")]


def test_a_key_is_needed_where_there_is_one(decoder):
    with client_of(decoder, key="secret") as client:
        for header in (None, "Bearer wrong", "Bearer", "Basic secret", "Bearer sécret".encode()):
            for path in ("/v1/models", "/metrics", "/sigma-en/v1/models"):
                answer = client.get(path, headers={"Authorization": header} if header else {})
                assert answer.status_code == 401, (path, header)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "invalid_api_key"
            assert client.post("/v1/completions", json=ASKED).status_code == 401
        assert client.get("/health").status_code == client.get("/").status_code == 200
        key = {"Authorization": "Bearer secret"}
        assert client.post("/v1/completions", json=ASKED, headers=key).status_code == 200
        assert "HTTPBearer" in client.get("/openapi.json").text


def test_a_body_that_is_too_large_is_refused(decoder):
    with client_of(decoder, body_kib=1) as client:
        large = ASKED | {"prompt": "x" * 1100}
        assert client.post("/v1/completions", json=ASKED).status_code == 200
        assert client.post("/v1/completions", json=large).status_code == 413
        chunks = (b"x" * 400 for _ in range(4))
        answer = client.post("/v1/completions", content=chunks, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413


def test_a_path_may_name_the_model(client):
    assert client.post("/sigma-en/v1/completions", json=ASKED).status_code == 200
    assert client.post("/sigma-zh/v1/completions", json=ASKED).status_code == 400, "the body says another one"
    assert client.get("/sigma-zh/v1/models").json() == client.get("/v1/models").json()
    for path in ("/sigma-xx/tokenizer_info", "/sigma-zh", "/sigma-zh/sigma-zh/version", "/%2e%2e/%2e%2e/etc/passwd"):
        assert client.get(path).status_code == 404, path


@pytest.fixture(scope="module")
def schema(tiny_data):
    decoder = DrawnDecoder(tiny_data)
    tree = served_app(decoder).openapi()
    with server_of(decoder) as url:
        found = schemathesis.openapi.from_dict(tree)
        found.config.update(base_url=url)
        yield found


def ask_by_schema(schema, number: int) -> None:
    """Ask each operation `number` times what its schema allows, and as often what it does not."""
    for operation in (result.ok() for result in schema.get_all_operations()):
        modes = GenerationMode if operation.method == "post" else [GenerationMode.POSITIVE]  # a GET cannot be much else
        for mode in modes:

            @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case):
                # an unknown key whose value is null is dropped, and no error
                is_invalid = case.meta.generation.mode is GenerationMode.NEGATIVE
                assume(not (is_invalid and isinstance(case.body, dict) and None in case.body.values()))
                case.call_and_validate(excluded_checks=[positive_data_acceptance])  # a prompt may be too long

            ask()


def test_requests_drawn_from_the_schema(schema):
    ask_by_schema(schema, 2)


@pytest.mark.slow
def test_many_requests_drawn_from_the_schema(schema):
    ask_by_schema(schema, 200)
