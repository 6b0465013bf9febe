"""/tokenize, /detokenize and /tokenizer_info: what lm-evaluation-harness asks of them."""

from __future__ import annotations

import pytest

from pangu_sigma.text.vocabulary import EOT, TAG_OF_LANGUAGE


def post(client, path, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("text", ["the cat", "今天 天气", "", "def f():\n\treturn 1", "龘🙂"])
@pytest.mark.parametrize("domain", ["zh", "en", "code"])
def test_there_and_back(client, decoder, text, domain):
    from pangu_sigma.domains import domains_of

    of = domains_of(decoder.config).named(domain)
    found = post(client, "/tokenize", model=f"sigma-{domain}", prompt=text, return_token_strs=True)
    assert found["tokens"] == decoder.tokenizer.prompt(text, of)
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert post(client, "/detokenize", tokens=found["tokens"])["prompt"] == text
    bare = post(client, f"/sigma-{domain}/tokenize", prompt=text, add_special_tokens=False)
    assert bare["tokens"] == decoder.tokenizer.encode(text, of)
    assert (TAG_OF_LANGUAGE["python"] in found["tokens"]) is (domain == "code")


def test_the_end_of_a_document_has_a_name(client):
    info = client.get("/sigma-en/tokenizer_info").json()
    assert info["eos_token"] == "<eot>"
    assert post(client, "/sigma-en/tokenize", prompt=info["eos_token"], add_special_tokens=False)["tokens"] == [EOT]
    assert EOT not in post(client, "/sigma-en/tokenize", prompt="a <eot> b")["tokens"], "inside a text it is text"
    assert info["bos_token"] is None
    assert info["model_max_length"] == post(client, "/sigma-en/tokenize", prompt="a")["max_model_len"]


def test_a_domain_must_be_named(client):
    """Each reads text in its own way, and ids of the wrong one would be wrong without a word."""
    bodies = {"/tokenize": {"prompt": "a"}, "/v1/completions": {"prompt": "a"}}
    bodies["/v1/chat/completions"] = {"messages": [{"role": "user", "content": "a"}]}
    for answer in (client.get("/tokenizer_info"), *(client.post(path, json=body) for path, body in bodies.items())):
        assert answer.status_code == 400
        assert "/sigma-zh/" in answer.json()["error"]["message"]
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert post(client, f"/sigma-zh{path}", **bodies[path])["model"] == "sigma-zh"
    assert (
        client.get("/tokenizer_info", params={"model": "sigma-zh"}).json()["chat_template"]
        != (client.get("/sigma-en/tokenizer_info").json()["chat_template"])
    )


def test_ids_that_do_not_exist_are_refused(client, decoder):
    size = decoder.tokenizer.size
    assert client.post("/detokenize", json={"tokens": [size - 1]}).status_code == 200
    answer = client.post("/detokenize", json={"tokens": [1, size]})
    assert answer.status_code == 400
    assert f"tokens: {size} does not exist; there are 0 … {size - 1}" in answer.json()["error"]["message"]
