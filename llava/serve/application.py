"""The application of `llava serve`: the API, the metrics, and a place for the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from llava.errors import MethodError, NotFoundError
from llava.serve.http.access import Access
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.http.limits import Limits
from llava.serve.http.stack import new_app, protect
from llava.serve.metrics import CONTENT_TYPE, Metrics, MetricsLayer
from llava.serve.openai.chat import complete
from llava.serve.openai.messages import PromptLimits
from llava.serve.openai.pictures import PictureMemory

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from llava.serve.served import ServedModel, ServedModels

MountPage = Callable[[FastAPI, "ServedModels"], FastAPI]
"""Adds the web page to an application, as `gradio.mount_gradio_app` does, and returns the result."""


@dataclass(frozen=True)
class ServeOptions:
    """What a server is open to, and how much it takes."""

    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    prompt: PromptLimits = field(default_factory=PromptLimits)


def create_app(
    models: ServedModels,
    lifecycle: Lifecycle,
    options: ServeOptions | None = None,
    *,
    mount_page: MountPage | None = None,
) -> ASGIApp:
    """Return the application with all its layers; `models` may be filled later, while it runs."""
    options = options or ServeOptions()
    metrics = Metrics(models)
    app = new_app()
    _add_api(app, models, options.prompt, metrics)
    _add_end_of_api(app)
    app = _add_front(app) if mount_page is None else mount_page(app, models)
    protected = protect(app, options.access, limits=options.limits, lifecycle=lifecycle)
    return MetricsLayer(protected, metrics)


def _add_api(app: FastAPI, models: ServedModels, limits: PromptLimits, metrics: Metrics) -> None:
    memory = PictureMemory(limits.pictures)

    async def chat_completions(request: Request) -> Response:
        return await complete(request, models, limits, memory, metrics)

    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_card(model) for model in models]}

    async def show_model(name: str) -> dict[str, Any]:
        return _model_card(models.get(name))

    async def show_metrics() -> Response:
        return Response(metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    app.add_api_route("/v1/chat/completions", chat_completions, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", list_models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models/{name:path}", show_model, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", show_metrics, methods=["GET"], response_model=None)


def _add_end_of_api(app: FastAPI) -> None:
    """Refuse here what the API does not have: a page behind it would answer in its own words."""
    routes = {route.path: sorted(route.methods or ()) for route in app.routes if isinstance(route, APIRoute)}

    async def refuse(request: Request) -> Response:
        if (methods := routes.get(request.url.path)) is not None:
            raise MethodError("The route does not have this method", remedy=f"Use {', '.join(methods)}.")
        raise NotFoundError("There is no such route", remedy="Check the address.")

    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    app.add_api_route("/v1/{path:path}", refuse, methods=methods, response_model=None)


def _add_front(app: FastAPI) -> FastAPI:
    """Say at `/` what there is, where no page is mounted."""

    async def front() -> dict[str, Any]:
        return {"name": "llava", "api": "/v1", "routes": ["/v1/chat/completions", "/v1/models", "/metrics"]}

    app.add_api_route("/", front, methods=["GET"], response_model=None)
    return app


def _model_card(model: ServedModel) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "llava"}
