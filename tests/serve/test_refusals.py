"""A refusal says what is wrong, where, and in one form."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict

from pangu_sigma.serve.refusals import ApiError, install_error_handlers


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    number: int


def client() -> TestClient:
    app = FastAPI()
    install_error_handlers(app)

    @app.post("/thing")
    def thing(body: Thing) -> None:
        """Take a thing."""

    @app.get("/refused")
    def refused() -> None:
        raise ApiError(429, "later", "n", "busy", {"Retry-After": "3"})

    return TestClient(app, raise_server_exceptions=False)


def test_every_problem_is_a_line_with_its_parameter():
    error = client().post("/thing", json={"number": "x", "color": 1}).json()["error"]
    assert error["message"] == (
        "number: it must be a whole number; color: this parameter is not known here; remove it, or see /openapi.json"
    )
    assert (error["param"], error["code"], error["type"]) == ("number", "invalid_value", "invalid_request_error")


def test_many_problems_are_counted():
    answer = client().post("/thing", json={f"x{i}": 1 for i in range(100)})
    assert answer.json()["error"]["message"].endswith("… and 93 more")


def test_headers_and_types_follow_the_status():
    answer = client().get("/refused")
    assert answer.headers["retry-after"] == "3"
    assert answer.json() == {"error": {"message": "later", "type": "rate_limit_error", "param": "n", "code": "busy"}}
    assert ApiError(404, "x").body["error"]["type"] == "not_found_error"
    assert ApiError(400, "half \ud800").body["error"]["message"].isascii()
