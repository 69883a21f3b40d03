"""The `remote` engine: any OpenAI-compatible endpoint (vLLM, SGLang, llama-server, a cluster) with our face.

The server renders the prompt and prepares the pictures; what arrives there is the dialogue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llava.engine.http_endpoint import DEFAULT_MAX_CONCURRENCY, Endpoint, HttpOptions, base_address
from llava.engine.http_engine import Delta, HttpEngine, Written, check_pictures
from llava.engine.http_faults import Fault, shorten
from llava.engine.remote_events import read_chat_event
from llava.engine.remote_messages import chat_body
from llava.errors import LlavaError, RequestError
from llava.processing.sources import DEFAULT_LIMITS, ImageLimits
from llava.templates import get_template

if TYPE_CHECKING:
    import httpx

    from llava.engine.request import Request
    from llava.templates import ChatTemplate

_CHAT = "/chat/completions"
_MODELS = "/models"
_REFUSALS = (400, 422)
_ABOUT_FORMAT = re.compile(r"response_format|schema|grammar|structured", re.IGNORECASE)
"""What servers write of when they refuse a format; nothing else in our requests has these names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions(HttpOptions):
    """How an endpoint is asked."""

    template: str = "vicuna_v1"
    """What `engine.template` is, for those that show a prompt; the server's own decides."""
    max_images: int = 16
    """Pictures in one request."""
    image_limits: ImageLimits = DEFAULT_LIMITS
    """What a picture may cost to load."""
    extra: Mapping[str, object] = field(default_factory=dict)
    """Fields to add to every request or to replace; None removes one ("ignore_eos", "max_tokens": None)."""


class RemoteEngine(HttpEngine):
    """Answers requests by an endpoint's `/chat/completions`."""

    has_formats = True
    """They are passed on: the endpoint holds to them, or refuses them."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        options: RemoteOptions | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Ask the endpoint for its models, so that what is wrong with address or key is known at once.

        url: base of the API, as "http://127.0.0.1:8000/v1"; without a path, /v1 is added.
        model: which of its models answers; None takes the only or first one.
        api_key: sent as a bearer token, and shown in no message.
        transport: how bytes travel; None is the network.
        Raises ConfigError for a URL that is none, RemoteError, DependencyError.
        """
        options = options or RemoteOptions()
        endpoint = Endpoint(
            base_address(url, default_path="/v1"),
            api_key=api_key,
            options=options,
            transport=transport,
            as_error=_as_error,
        )
        super().__init__(endpoint, options=options)
        self._remote_options = options
        self._template = get_template(options.template)
        with ExitStack() as undo:
            undo.callback(self.close)
            self._model, self._server = self._loop.run(self._find_model(model))
            undo.pop_all()

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        template: str = "vicuna_v1",
        max_concurrency: int | None = None,
        first_token_timeout_s: float = 600.0,
        num_retries: int = 4,
    ) -> RemoteEngine:
        """Return an engine for an endpoint; RemoteOptions says what the arguments mean."""
        options = RemoteOptions(
            template=template,
            max_concurrency=DEFAULT_MAX_CONCURRENCY if max_concurrency is None else max_concurrency,
            first_token_timeout_s=first_token_timeout_s,
            num_retries=num_retries,
        )
        return cls(url, model=model, api_key=api_key, options=options)

    @property
    def name(self) -> str:
        """The model and where it is."""
        return f"{self._model} at {self._endpoint.url}"

    @property
    def model_name(self) -> str:
        """What the endpoint calls the model."""
        return self._model

    @property
    def server(self) -> str:
        """What calls itself the owner of the model ("vllm", "sglang", "llamacpp"); "" where nothing does."""
        return self._server

    @property
    def template(self) -> ChatTemplate:
        """The template of RemoteOptions; the server renders prompts by its own."""
        return self._template

    def _written(self, request: Request) -> Written:
        options = self._remote_options
        if request.prompt is None:
            check_pictures(request, max_images=options.max_images)
        body = chat_body(
            request,
            model=self._model,
            server=self._server,
            limits=options.image_limits,
            extra=options.extra,
        )
        return Written(_CHAT, body)

    def _read(self, data: str) -> Delta:
        return read_chat_event(data)

    async def _find_model(self, wanted: str | None) -> tuple[str, str]:
        """Return the model's name and what runs it; raises RemoteError when there is no model to choose."""
        listing = await self._endpoint.get(_MODELS, may_be_missing=wanted is not None)
        if listing is None:
            assert wanted is not None
            return wanted, ""
        try:
            owners = _owners(listing)
            if wanted is None and not owners:
                raise Fault("lists no model", "Load one there, or give the model's name.", said=listing)
        except Fault as fault:
            raise self._endpoint.error(_MODELS, fault) from None
        # Servers also answer to names that they do not list (adapters, aliases): a given name is not checked.
        name = wanted if wanted is not None else next(iter(owners))
        return name, owners.get(name) or next(iter(owners.values()), "")


def _as_error(fault: Fault, url: str, *, secret: str | None, num_attempts: int) -> LlavaError:
    """Return the error of a fault; what is wrong with a response format is for the asker to mend."""
    if fault.status in _REFUSALS and _ABOUT_FORMAT.search(fault.said):
        said = shorten(fault.said.replace(secret, "***") if secret else fault.said)
        return RequestError(
            f"the model's server refuses the response format: {said}",
            remedy="Change the schema, or leave it out and describe the format in the prompt.",
        )
    return fault.to_error(url, secret=secret, num_attempts=num_attempts)


def _owners(listing: str) -> dict[str, str]:
    """Read a list of models as {name: owner}; raises Fault when it is none."""
    try:
        return {str(model["id"]): str(model.get("owned_by", "")) for model in json.loads(listing)["data"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Fault(
            "answers with something else than a list of models",
            "Check that the URL is that of an OpenAI-compatible API.",
            said=listing,
        ) from None
