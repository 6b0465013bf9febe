"""FastAPI application: routes and request parsing. Handlers are a line or two and call the other files of this folder."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from pangu_sigma.serve import requests, responses
from pangu_sigma.serve.chats import answer_chat
from pangu_sigma.serve.completions import complete
from pangu_sigma.serve.guard import Guard, HostNames
from pangu_sigma.serve.page import PAGE_FILE, policy
from pangu_sigma.serve.refusals import ApiError, ErrorBody, install_error_handlers
from pangu_sigma.serve.served import Served
from pangu_sigma.serve.tokens import detokenize, tokenize, tokenizer_info

_VERSION = importlib.metadata.version("pangu-sigma")
_STREAM = "a stream, each event a chunk; the last line is [DONE]"


def make_app(served: Served, names: HostNames, key: str | None = None) -> FastAPI:
    """Make the application that serves a model. names: allowed host names. key: API key of the clients; None if they need none."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served.thread.start()
        yield
        served.thread.end()
        served.prompts.close()

    app = FastAPI(
        title="PanGu-Σ",
        version=_VERSION,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from another site
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    install_error_handlers(app)
    app.include_router(_text_routes(served))
    app.include_router(_other_routes(served))
    app.add_middleware(Guard, names=names, key=key, served=served)
    return app


def _text_routes(served: Served) -> APIRouter:
    """Routes whose requests have a body."""
    router = APIRouter(route_class=_StrictRoute, responses=_problems(400, 403, 404, 408, 413, 415, 429, 503))

    @router.post("/v1/completions", response_model=None, responses=_answers(responses.Completion, responses.Completion))
    async def completions(request: Request, body: requests.CompletionRequest) -> Response:
        """Continue prompts."""
        return await complete(served, request, body)

    @router.post(
        "/v1/chat/completions", response_model=None, responses=_answers(responses.ChatCompletion, responses.ChatChunk)
    )
    async def chat_completions(request: Request, body: requests.ChatRequest) -> Response:
        """Answer a chat."""
        return await answer_chat(served, request, body)

    @router.post("/tokenize")
    async def tokenize_text(request: Request, body: requests.TokenizeRequest) -> responses.Tokenized:
        """Tokenize a text."""
        return await tokenize(served, body, request.scope.get("model"))

    @router.post("/detokenize")
    async def detokenize_ids(request: Request, body: requests.DetokenizeRequest) -> responses.Detokenized:
        """Decode token ids."""
        return detokenize(served, body, request.scope.get("model"))

    return router


def _other_routes(served: Served) -> APIRouter:
    """Routes whose requests have no body."""
    router, page = APIRouter(responses=_problems(403)), PAGE_FILE.read_text(encoding="utf-8")
    page_headers = {"Content-Security-Policy": policy(page), "Cache-Control": "no-cache"}

    @router.get("/v1/models")
    async def models() -> responses.ModelList:
        """List the models: the domains."""
        return responses.ModelList(object="list", data=[_model(served, name) for name in served.domains])

    @router.get("/v1/models/{model}", responses=_problems(404))
    async def model(model: str) -> responses.ServedModel:
        """Describe one model: a domain."""
        served.domain(model)
        return _model(served, model)

    @router.get("/tokenizer_info", responses=_problems(400, 404))
    async def tokenizer(request: Request, model: str | None = None) -> responses.TokenizerInfo:
        """Describe the tokenizer."""
        return tokenizer_info(served, model, request.scope.get("model"))

    @router.get("/health", responses=_problems(503))
    async def health() -> dict[str, str]:
        """Report that the engine works."""
        if served.thread.failed:
            raise ApiError(503, "the engine has failed; the log says why", code="failed")
        return {"status": "ok"}

    @router.get("/version")
    async def version() -> dict[str, str]:
        """Return the version of the program."""
        return {"version": _VERSION}

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Return metrics for Prometheus."""
        return Response(served.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/", response_class=Response, responses={200: {"content": {"text/html": {}}}})
    async def root() -> Response:
        """Return the chat page for browsers."""
        return Response(page, media_type="text/html; charset=utf-8", headers=page_headers)

    return router


def _model(served: Served, name: str) -> responses.ServedModel:
    return responses.ServedModel(
        id=name,
        object="model",
        created=served.started,
        owned_by="pangu-sigma",
        max_model_len=served.length,
        domain=served.domains[name].name,
        segments=served.config.model.segments if served.config.model.rre_layers else [],
    )


class _StrictRequest(Request):
    """Request with strict JSON: no duplicate keys, no NaN, no overlong numbers, limited nesting."""

    async def json(self) -> Any:
        try:
            return json.loads(await self.body(), parse_constant=_no_constant, object_pairs_hook=_no_key_twice)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            what = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise ApiError(400, f"the body is not JSON that can be read: {what}", code="invalid_json") from None


class _StrictRoute(APIRoute):
    """Route that requires a body of type application/json, in UTF-8 and not compressed. Without CORS preflight, pages of other
    sites can send any other type."""

    def get_route_handler(self):
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            _check_kind(request.headers)
            try:
                return await handle(_StrictRequest(request.scope, request.receive))
            except RequestValidationError as error:
                for problem in error.errors():
                    if problem["type"] == "json_invalid":
                        reason = f"the body is not JSON: {problem['ctx']['error']}"
                        raise ApiError(400, reason, code="invalid_json") from None
                raise
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it

        return handle_strictly


def _check_kind(headers: Headers) -> None:
    """Raise ApiError for a body that is no JSON in UTF-8, or that is compressed."""
    kind, _, parameters = headers.get("content-type", "").lower().partition(";")
    kind, charset = kind.strip(), re.search(r'charset="?([^\s;"]*)', parameters)
    if kind != "application/json":
        raise ApiError(
            415,
            f"Content-Type is {kind[:100]!r}; it must be application/json (curl: -H 'Content-Type: application/json')",
        )
    if charset and charset[1] not in ("utf-8", "utf8"):
        raise ApiError(415, f"Content-Type has the charset {charset[1][:100]!r}; JSON is UTF-8, send it so")
    if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
        raise ApiError(415, f"Content-Encoding is {encoding[:100]!r}; send the body as it is")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    by_key = dict(pairs)
    if len(by_key) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:100]!r} is there twice")
    return by_key


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody} for status in (*statuses, 401)}


def _answers(
    whole: type[responses.ResponseBody], chunk: type[responses.ResponseBody]
) -> dict[int | str, dict[str, Any]]:
    """Return the schema of a response that may be a stream."""
    stream = {"text/event-stream": {"schema": {"type": "string", "description": f"{_STREAM} ({chunk.__name__})"}}}
    return {200: {"model": whole, "content": stream}}
