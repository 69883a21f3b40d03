"""The layers around an application, in their order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava.serve.http.access import EVERY_HOST, Access, AccessLayer
from llava.serve.http.errors import ERROR_CODE_HEADER, ErrorLayer, install_error_handlers
from llava.serve.http.lifecycle import Lifecycle, LifecycleLayer
from llava.serve.http.limits import BodyLayer, Limits
from llava.serve.http.request_id import HEADER as REQUEST_ID_HEADER
from llava.serve.http.request_id import RequestIdLayer
from llava.serve.http.request_log import RequestLogLayer

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp


def new_app() -> FastAPI:
    """Return an empty application, without FastAPI's pages, which load scripts from elsewhere."""
    from fastapi import FastAPI

    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


def protect(app: FastAPI, access: Access, *, limits: Limits, lifecycle: Lifecycle) -> ASGIApp:
    """Return `app` with every layer around it: what one runs and what tests should call."""
    install_error_handlers(app)
    layered: ASGIApp = BodyLayer(app, limits)
    layered = LifecycleLayer(layered, lifecycle)
    layered = ErrorLayer(AccessLayer(layered, access))
    if access.allowed_hosts:
        layered = _readable_by_pages(layered, access.allowed_hosts)
    return RequestIdLayer(RequestLogLayer(layered))


def _readable_by_pages(app: ASGIApp, hosts: Sequence[str]) -> ASGIApp:
    """Let pages of `hosts` read answers, and ask beforehand whether they may send a key (CORS)."""
    from starlette.middleware.cors import CORSMiddleware

    names = "|".join(".*" if host == EVERY_HOST else re.escape(host) for host in hosts)
    return CORSMiddleware(
        app,
        allow_origin_regex=rf"(?i:https?://({names})(:\d+)?)",
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=(REQUEST_ID_HEADER, ERROR_CODE_HEADER.decode(), "Retry-After"),
    )
