"""POST /v1/completions."""


def test_it_answers(client):
    body = {
        "model": "sigma-en",
        "prompt": "the cat",
        "max_tokens": 8,
        "seed": 1,
        "logprobs": 2,
        "echo": True,
        "experts": True,
    }
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    print(answer.text)
    for path in ("/v1/models", "/metrics", "/health", "/version", "/openapi.json", "/", "/sigma-en/tokenizer_info"):
        found = client.get(path)
        assert found.status_code == 200, found.text
        print(found.text[:1500])
    body = {"model": "sigma-en", "messages": [{"role": "user", "content": "hi"}], "stream": True, "logprobs": True}
    print(client.post("/v1/chat/completions", json=body).text[:3000])
    print(client.post("/v1/completions", json={"prompt": [], "x": 1, "n": "3"}).text)
    print(client.post("/v1/completions", content="[" * 100000, headers={"Content-Type": "application/json"}).text)
    print(client.post("/v1/completions", content="{nope", headers={"Content-Type": "application/json"}).text)
    print(client.post("/v1/completions", content="NaN", headers={"Content-Type": "application/json"}).text)
    print(client.post("/v1/completions", content="x").text)
    assert 0
