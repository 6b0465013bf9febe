"""Error responses in the form of OpenAI's interface: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

_SHOWN = 8
"""Number of problems of one request that a message lists."""
_SHOWN_CHARACTERS = 200
"""Number of characters of a path that a message repeats."""

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Problem(BaseModel):
    """Error of a request, as OpenAI reports it. param: the parameter at fault. code: short name of the error, for programs."""

    model_config = ConfigDict(extra="forbid")

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Response body of every status from 400 on."""

    model_config = ConfigDict(extra="forbid")

    error: Problem


class ApiError(HTTPException):
    """Exception for a request that is refused with an HTTP status of 400 … 599."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def error_body(self) -> ErrorBody:
        """Return the refusal as a response body."""
        kind = _TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        message, param = _sendable(self.detail), self.param and _sendable(self.param)
        return ErrorBody(error=Problem(message=message, type=kind, param=param, code=self.code))


def stopping() -> ApiError:
    """Return the refusal of a request that the server, which ends, does not answer: another server may."""
    return ApiError(
        503, "this request is broken off: the server ends; ask another one, or again later", code="server_stopping"
    )


def _sendable(text: str) -> str:
    """Replace lone surrogates, which a client may have put into the name of a parameter."""
    return text.encode(errors="backslashreplace").decode()


def error_response(refused: ApiError) -> Response:
    """Return the HTTP response to a refused request."""
    return JSONResponse(refused.error_body().model_dump(), refused.status_code, refused.headers)


def install_error_handlers(app: FastAPI) -> None:
    """Install exception handlers that answer every error of an application with an `ErrorBody`."""

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> Response:
        if isinstance(error, ApiError):
            return error_response(error)
        asked = f"{request.method} {request.url.path}"[:_SHOWN_CHARACTERS]
        message = f"{asked}: {error.detail}; /openapi.json lists what there is"
        return error_response(ApiError(error.status_code, message, headers=error.headers))

    @app.exception_handler(RequestValidationError)
    def _validation(request: Request, error: RequestValidationError) -> Response:
        problems = error.errors()
        lines = [_explained(problem) for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"… and {len(problems) - _SHOWN} more")
        return error_response(ApiError(400, "; ".join(lines), _parameter(problems[0]) or None, "invalid_value"))

    @app.exception_handler(Exception)
    def _bug(request: Request, error: Exception) -> Response:
        return error_response(ApiError(500, "the server has a bug here; its log says more"))


def _explained(problem: dict[str, Any]) -> str:
    """Return a line for one problem that pydantic found."""
    where, kind = _parameter(problem), problem["type"]
    if kind == "extra_forbidden":
        return f"{where}: this parameter is not known here; remove it, or see /openapi.json"
    if kind == "missing":
        return f"{where or 'the body'}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _parameter(problem: dict[str, Any]) -> str:
    """Return the path of a parameter in the request, such as messages.0.role."""
    path = [str(key)[:100] for key in problem["loc"]]
    return ".".join(path[1:] if path[:1] == ["body"] else path)
