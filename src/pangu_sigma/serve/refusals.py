"""Error responses in the form of OpenAI's interface: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from pangu_sigma.config_file import in_words

_SHOWN_PROBLEMS = 8  # problems of one request that a message lists
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": "refused: {error: {message, type, param, code}}"}
    for status in (400, 401, 404, 413, 429, 500, 503)
}
"""Statuses of refused requests, for /openapi.json."""


class ApiError(HTTPException):
    """Exception for a request that is refused with an HTTP status of 400 … 599.

    param: the parameter at fault. code: short name of the error, for programs.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, headers: Any = None
    ):
        super().__init__(status, message, headers)
        kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        fields = {"message": message, "type": kind, "param": param, "code": code}
        # a client may have put half of a surrogate pair into the name of a parameter
        self.body = {"error": {k: v and v.encode(errors="backslashreplace").decode() for k, v in fields.items()}}

    @classmethod
    def invalid(cls, parameter: str, reason: str, code: str = "invalid_value") -> ApiError:
        """Return the refusal of a parameter."""
        return cls(400, f"{parameter}: {reason}", parameter, code)


def install_error_handlers(app: FastAPI) -> None:
    """Install exception handlers that answer refused requests in the form of OpenAI's interface."""

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if not isinstance(error, ApiError):
            request_line = f"{request.method} {request.url.path}"[:200]
            message = f"{request_line}: {error.detail}; /openapi.json lists what there is"
            error = ApiError(error.status_code, message, headers=error.headers)
        return JSONResponse(error.body, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        problems = error.errors()
        more = [f"… and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > _SHOWN_PROBLEMS else []
        message = "; ".join([*map(_explain, problems[:_SHOWN_PROBLEMS]), *more])
        return await _http(request, ApiError(400, message, _parameter(problems[0]) or None, "invalid_value"))


def _explain(problem: dict[str, Any]) -> str:
    """Return a line for one problem, an entry of `errors()` of pydantic's exception."""
    parameter = _parameter(problem)
    match problem["type"]:
        case "extra_forbidden":
            return f"{parameter}: this parameter is not known here; remove it, or see /openapi.json"
        case "missing":
            return f"{parameter or 'the body'}: is missing"
        case "json_invalid":
            return f"the body is not JSON: {problem['ctx']['error']}"
        case "model_attributes_type" if not parameter:
            return "the body is not a JSON object, sent as such (curl: -H 'Content-Type: application/json')"
    return f"{parameter}: {in_words(problem)}" if parameter else in_words(problem)


def _parameter(problem: dict[str, Any]) -> str:
    """Return the path of a parameter in the request, such as messages.0.role."""
    path = [str(key)[:100] for key in problem["loc"] if problem["type"] != "json_invalid"]
    return ".".join(path[1:] if path[:1] == ["body"] else path)
