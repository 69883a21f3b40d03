"""Who judges: any OpenAI-compatible endpoint, or a model that `llava.load` opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from llava.engine.http_endpoint import Endpoint, HttpOptions, base_address
from llava.engine.http_faults import Fault
from llava.engine.loop_thread import LoopThread
from llava.engine.protocol import Engine, read
from llava.engine.request import Request, SamplingParams
from llava.eval.judge.replies import Reply
from llava.templates import Turn

if TYPE_CHECKING:
    import httpx

_CHAT = "/chat/completions"


class Backend(Protocol):
    """Carries out requests; may be called from several threads."""

    def complete(self, body: Mapping[str, Any], *, seed: int) -> Reply:
        """Return the reply to a body; raises LlavaErrors."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


class EndpointBackend:
    """An endpoint's `/chat/completions`, without streaming."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        options: HttpOptions,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Ask nothing yet; raises ConfigError for a URL that is none, DependencyError."""
        address = base_address(url, default_path="/v1")
        self._endpoint = Endpoint(address, api_key=api_key, options=options, transport=transport)
        self._loop = LoopThread("llava-judge")

    def complete(self, body: Mapping[str, Any], *, seed: int) -> Reply:
        """Return the reply; raises RemoteError once retries are used up."""
        del seed  # the endpoint draws by itself, and requests stay as the original's
        data = json.dumps(body).encode()
        return self._loop.run(self._endpoint.post(_CHAT, data, read=read_completion))

    def close(self) -> None:
        """Close the connections."""
        self._loop.run(self._endpoint.close())
        self._loop.close()


class EngineBackend:
    """A model of ours."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def complete(self, body: Mapping[str, Any], *, seed: int) -> Reply:
        """Return the reply; the system's words come before the user's, as templates have their own."""
        text = "\n\n".join(message["content"] for message in body["messages"])
        temperature = body.get("temperature", 0)
        sampling = SamplingParams(
            temperature=temperature,
            max_new_tokens=body["max_tokens"],
            seed=seed if temperature > 0 else None,
        )
        answer = read(self._engine.submit(Request(turns=(Turn("user", (text,)),), sampling=sampling)))
        return Reply(answer.text, answer.num_prompt_tokens, answer.num_new_tokens)

    def close(self) -> None:
        """End the engine."""
        self._engine.close()


def read_completion(text: str) -> Reply:
    """Return what a chat completion says, "" where it is empty; raises Fault for anything else."""
    try:
        found = json.loads(text)
        content = found["choices"][0]["message"]["content"]
        usage = found.get("usage") or {}
        if not isinstance(content, str | None):
            raise TypeError("content is no text")
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Fault(
            "answers with something else than a chat completion",
            "Check that the URL is that of an OpenAI-compatible API.",
            said=text,
            is_passing=True,
        ) from None
    known = [count if type(count) is int and count >= 0 else None for count in counts]
    return Reply(content or "", *known)
