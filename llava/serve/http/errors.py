"""Errors as answers: one table from class to status, one shape of JSON, and nothing private in it.

    {"error": {"message", "type", "param", "code", "remedy", "docs", "request_id"}}

is OpenAI's shape with `remedy`, `docs` (the page about the code) and `request_id` added. What an error of
this machine's files, or an unexpected exception, has to say goes to the log under the request id; the client
gets words without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llava import errors
from llava.errors import LlavaError
from llava.log import FILE_ONLY, TERMINAL_ONLY, get_logger
from llava.serve.http.request_id import request_id_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_logger = get_logger(__name__)

CLOSE: Final = (b"connection", b"close")
ERROR_CODE_HEADER: Final = b"x-error-code"
_NO_FAULTS = (errors.UnavailableError, errors.AnswerTimeoutError, errors.InternalError)
"""Not logged as errors: what is meant to happen, and what `unexpected` has logged already."""
_LINGER_S = 2.0
"""How long the rest of a refused body is read and thrown away, so that its sender gets to read the answer."""


class Treatment(NamedTuple):
    """How an error is answered."""

    status: int
    type: str
    """OpenAI's word for its kind."""
    retry_after_s: int | None = None
    words: str | None = None
    """Said instead of the error's own words, which are for the operator; None where they are the client's."""


_OPERATOR = "Ask whoever runs the server: its log has the details under this request id."

TREATMENTS: Final[dict[type[LlavaError], Treatment]] = {
    LlavaError: Treatment(500, "server_error", words="The server cannot carry the request out"),
    errors.UsageError: Treatment(400, "invalid_request_error"),
    errors.ConfigError: Treatment(400, "invalid_request_error"),
    errors.DependencyError: Treatment(500, "server_error", words="The server lacks a package it needs"),
    errors.FileError: Treatment(500, "server_error", words="The server cannot read a file it needs"),
    errors.ImageError: Treatment(400, "invalid_request_error"),
    errors.CheckpointError: Treatment(500, "server_error", words="The model's files cannot be used"),
    errors.TokenizerError: Treatment(500, "server_error", words="The model's tokenizer cannot be used"),
    errors.PromptError: Treatment(400, "invalid_request_error"),
    errors.DataError: Treatment(500, "server_error", words="The server cannot read data it needs"),
    errors.EngineError: Treatment(503, "server_error", retry_after_s=5),
    errors.EngineBusyError: Treatment(429, "rate_limit_error", retry_after_s=2),
    errors.RemoteError: Treatment(503, "server_error", 5, "The model's server does not answer as it should"),
    errors.RequestError: Treatment(400, "invalid_request_error"),
    errors.AuthenticationError: Treatment(401, "authentication_error"),
    errors.AccessError: Treatment(403, "permission_error"),
    errors.NotFoundError: Treatment(404, "not_found_error"),
    errors.MethodError: Treatment(405, "invalid_request_error"),
    errors.RequestTimeoutError: Treatment(408, "invalid_request_error"),
    errors.TooLargeError: Treatment(413, "invalid_request_error"),
    errors.ServerBusyError: Treatment(429, "rate_limit_error", retry_after_s=2),
    errors.UnavailableError: Treatment(503, "server_error", retry_after_s=2),
    errors.AnswerTimeoutError: Treatment(504, "server_error"),
    errors.InternalError: Treatment(500, "server_error"),
    errors.RegistrationError: Treatment(409, "invalid_request_error"),
    errors.WorkerLostError: Treatment(502, "server_error"),
    errors.ReportedError: Treatment(502, "server_error"),
}
"""A class that is not listed is treated as the nearest of its bases that is."""

# What looks like a path of this machine or an object's address, in words that are otherwise the client's.
_PRIVATE = re.compile(r"(?<![\w:/.])/(?:[^\s/'\"]+/)+[^\s/'\"]*|\b[A-Za-z]:\\[^\s'\"]+|\b0x[0-9a-fA-F]{6,}\b")


def treatment_of(error: LlavaError) -> Treatment:
    """Return how an error is answered."""
    return next(TREATMENTS[base] for base in type(error).__mro__ if base in TREATMENTS)


def error_fields(error: LlavaError, request_id: str) -> dict[str, Any]:
    """Return what a client is told of an error: code, message, remedy, docs, request_id, type, param."""
    treatment = treatment_of(error)
    message, remedy = error.cause, error.remedy
    if treatment.words is not None:
        message, remedy = treatment.words, _OPERATOR
    return {
        "message": _PRIVATE.sub("(hidden)", message),
        "type": treatment.type,
        "param": None,
        "code": error.code,
        "remedy": _PRIVATE.sub("(hidden)", remedy),
        "docs": error.docs,
        "request_id": request_id,
    }


def unexpected(error: BaseException, request_id: str) -> errors.InternalError:
    """Log an exception that nobody meant to happen, and return what the client is told instead."""
    _logger.error("request %s failed", request_id, exc_info=error)
    return errors.InternalError("The server failed while it worked on the request", remedy=_OPERATOR)


def log_error(error: LlavaError, request_id: str) -> None:
    """Log what the client is not told: errors whose own words are for the operator, with their cause."""
    is_fault = treatment_of(error).status >= 500 and not isinstance(error, _NO_FAULTS)
    level = logging.ERROR if is_fault else logging.INFO
    if is_fault and not isinstance(error, errors.ReportedError):
        _logger.log(level, "request %s: %s", request_id, error, exc_info=error.__cause__)
        return
    # The words are the client's, who has them already: they may quote it, and a file would keep that.
    _logger.log(level, "request %s: %s", request_id, error, extra=TERMINAL_ONLY)
    _logger.log(level, "request %s: error[%s]", request_id, error.code, extra=FILE_ONLY)


def error_response(error: LlavaError, request_id: str) -> Response:
    """Return the answer to a request that ended in an error, and log it."""
    from starlette.responses import JSONResponse

    log_error(error, request_id)
    treatment = treatment_of(error)
    headers = {"Cache-Control": "no-store", ERROR_CODE_HEADER.decode(): error.code}
    if treatment.retry_after_s is not None:
        headers["Retry-After"] = str(treatment.retry_after_s)
    if treatment.status == 401:
        # Basic lets a browser ask for the key; the user name does not matter.
        headers["WWW-Authenticate"] = 'Bearer realm="llava", Basic realm="llava"'
    return JSONResponse(
        {"error": error_fields(error, request_id)}, status_code=treatment.status, headers=headers
    )


def as_llava_error(error: Exception, request_id: str) -> LlavaError:
    """Return an exception as one of ours: the framework's complaints, and whatever else it may be."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    if isinstance(error, LlavaError):
        return error
    if isinstance(error, RequestValidationError):
        return invalid_field(error.errors())
    if isinstance(error, HTTPException) and error.status_code < 500:
        if error.status_code == 404:
            return errors.NotFoundError("There is no such route", remedy="Check the address.")
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            return errors.MethodError("The route does not have this method", remedy=f"Use {allowed}.")
        return errors.RequestError(str(error.detail))
    return unexpected(error, request_id)


def invalid_field(complaints: Any) -> errors.RequestError:
    """Return pydantic's most exact complaint about a body as one of our errors."""
    exact = max(complaints, key=lambda complaint: len(complaint["loc"]))
    # The alternatives of a field ("str", "list[...]") are steps of pydantic's, and not of the body.
    place = ".".join(
        str(step) for step in exact["loc"] if step not in ("body", "str") and "[" not in str(step)
    )
    return errors.RequestError(
        f"{place[:200] or 'the body'}: {exact['msg']}", remedy="Mend this field of the request."
    )


def install_error_handlers(app: FastAPI) -> None:
    """Make a FastAPI application answer every error in our shape."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    async def answer(request: Request, error: Exception) -> Response:
        name = request_id_of(request.scope)
        return error_response(as_llava_error(error, name), name)

    for kind in (LlavaError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


class ErrorLayer:
    """Answers what the layers below raise; the last place before the server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; an exception becomes an answer, or the end of the answer that has begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = is_complete = has_body = False

        async def send_noted(message: Message) -> None:
            nonlocal has_begun, is_complete
            has_begun = True
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def receive_noted() -> Message:
            nonlocal has_body
            message = await receive()
            has_body = has_body or not message.get("more_body", False)
            return message

        name = request_id_of(scope)
        try:
            await self._app(scope, receive_noted, send_noted)
        except Exception as error:
            # Whatever it is: the client gets an answer, and the log the rest.
            if is_complete:
                return  # FastAPI answers what it did not expect, and raises it all the same
            known = as_llava_error(error, name)
            if has_begun:
                # The server closes the connection of an answer that is left incomplete.
                _logger.error("request %s broke off: %s", name, known)
            elif has_body:
                await error_response(known, name)(scope, receive, send)
            else:
                await _answer_early(error_response(known, name), receive, send)


async def _answer_early(response: Response, receive: Receive, send: Send) -> None:
    """Answer a request whose body may still be on its way, and close the connection."""
    headers = [*response.raw_headers, CLOSE]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_throw_away(receive), _LINGER_S)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _throw_away(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass
