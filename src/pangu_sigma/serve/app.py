"""FastAPI application, with the routes of everything but completions, which are in openai.py."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.metadata
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import generate_latest
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pangu_sigma.domains import Domain
from pangu_sigma.serve import openai, schemas
from pangu_sigma.serve.refusals import REFUSALS, ApiError, install_error_handlers
from pangu_sigma.serve.served import PREFIX, Served

PAGE_FILE = Path(__file__).with_name("page.html")
"""HTML file of the web page at `/`."""


def make_app(served: Served, hosts: Sequence[str], key: str | None = None) -> FastAPI:
    """Make the application that serves a model. hosts: host names that requests may name. key: API key; None if none is needed."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served.thread.start()
        yield
        served.thread.end()
        served.prompts.close()

    app = FastAPI(
        title="PanGu-Σ",
        version=importlib.metadata.version("pangu-sigma"),
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from another site
        redoc_url=None,
        max_body_size=served.limits.body_kib << 10,
    )
    app.state.served, app.state.key = served, key
    install_error_handlers(app)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    key_check = [] if key is None else [Depends(_check_key)]
    app.include_router(_public)
    app.include_router(_router, dependencies=key_check)
    # for clients that cannot send a model's name: /sigma-zh/tokenize is /tokenize with model=sigma-zh
    app.include_router(_router, prefix="/{of_path}", dependencies=key_check, include_in_schema=False)
    return app


async def _check_key(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
) -> None:
    """Raise ApiError unless the request has the server's key."""
    if credentials is None or not hmac.compare_digest(credentials.credentials.encode(), request.app.state.key.encode()):
        reason = "the key is missing or wrong; send the header Authorization: Bearer KEY"
        raise ApiError(401, reason, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


_router, _public = APIRouter(responses=REFUSALS), APIRouter(responses=REFUSALS)
_router.include_router(openai.router)


@_router.post("/tokenize")
async def tokenize(request: Request, body: schemas.TokenizeRequest) -> dict[str, Any]:
    """Tokenize a text, as in vLLM."""
    served, domain = openai.domain_of(request, body.model)
    has_language_tag = body.add_special_tokens is not False
    ids = await served.prompts.in_thread(served.prompts.read, body.prompt, domain, has_language_tag)
    names = [served.texts.display_text(token) for token in ids] if body.return_token_strs else None
    return {"count": len(ids), "max_model_len": served.length, "tokens": ids, "token_strs": names}


@_router.post("/detokenize")
async def detokenize(request: Request, body: schemas.DetokenizeRequest) -> dict[str, str]:
    """Decode token ids, as in vLLM. Ids mean the same in every domain."""
    tokenizer = request.app.state.served.tokenizer
    if body.model or "of_path" in request.path_params:
        openai.domain_of(request, body.model)  # only to refuse a model that does not exist
    if unknown_ids := [token for token in body.tokens if token >= tokenizer.size]:
        raise ApiError.invalid("tokens", f"{unknown_ids[0]} does not exist; there are 0 … {tokenizer.size - 1}")
    return {"prompt": tokenizer.decode(body.tokens)}


@_router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> dict[str, Any]:
    """Describe the tokenizer, as in vLLM; with it lm-evaluation-harness needs no tokenizer of its own."""
    served, domain = openai.domain_of(request, model)
    tokenizer, token_names = served.tokenizer, served.tokenizer.vocabulary.pieces
    return {
        "tokenizer_class": "PanGuSigmaTokenizer",
        "vocab_size": tokenizer.size,
        "model_max_length": served.length,
        "bos_token": None,
        "eos_token": token_names[tokenizer.eot],
        "pad_token": token_names[tokenizer.pad],
        "unk_token": token_names[tokenizer.unk],
        "chat_template": served.templates[domain.name].jinja(),
    }


@_router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """List the models: the domains."""
    served = request.app.state.served
    return {"object": "list", "data": [_description(served, domain) for domain in served.domains.values()]}


@_router.get("/v1/models/{model}")
async def model(request: Request, model: str) -> dict[str, Any]:
    """Describe one model: a domain. Ours: domain, and segments, the kinds of an RRE layer's segments."""
    return _description(*openai.domain_of(request, model))


def _description(served: Served, domain: Domain) -> dict[str, Any]:
    """Return the description of a domain as a model of OpenAI's interface."""
    return {
        "id": PREFIX + domain.name,
        "object": "model",
        "created": served.started,
        "owned_by": "pangu-sigma",
        "max_model_len": served.length,
        "domain": domain.name,
        "segments": served.config.model.segments if served.config.model.rre_layers else [],
    }


@_router.get("/version")
async def version(request: Request) -> dict[str, str]:
    """Return the version of the program."""
    return {"version": request.app.version}


@_router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Return metrics for Prometheus."""
    text = generate_latest(request.app.state.served.metrics.registry)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@_public.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Report that the engine works. Needs no key."""
    if request.app.state.served.thread.failed:
        raise ApiError(503, "the engine has failed; the log says why", code="failed")
    return {"status": "ok"}


@_public.get("/", response_class=HTMLResponse)
async def page() -> HTMLResponse:
    """Return the chat page for browsers, which has no data and asks for the key."""
    return HTMLResponse(PAGE_FILE.read_text(encoding="utf-8"), headers=_PAGE_HEADERS)


def policy(html: str) -> str:
    """Return the Content-Security-Policy of an HTML page. It allows the page's inline scripts and styles, by their hashes, and
    requests to this server. Scripts cannot turn text into markup, because the policy allows no trusted types.
    """
    hashes_of_tag = defaultdict[str, str](str)
    for tag, text in re.findall(r"<(script|style)\b[^>]*>(.*?)</\1>", html, re.DOTALL):
        hashes_of_tag[tag] += f" 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    inline = "".join(f"{tag}-src{hashes}; " for tag, hashes in hashes_of_tag.items())
    return (
        f"{inline}default-src 'none'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


_PAGE_HEADERS = {
    "Content-Security-Policy": policy(PAGE_FILE.read_text(encoding="utf-8")),
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
