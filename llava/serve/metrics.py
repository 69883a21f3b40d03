"""What a server did and does, for Prometheus: requests and errors, tokens, queues, times, remembered work."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from llava.errors import InternalError, LlavaError
from llava.serve.http.errors import ERROR_CODE_HEADER
from llava.serve.request_queue import ClientGoneError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from llava.engine.request import Answer
    from llava.serve.served import ServedModels

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
OK: Final = "ok"
CLIENT_GONE: Final = "client-gone"
_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self, models: ServedModels) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineStatistics(models))
        self._requests = Counter(
            "llava_requests", "Chat requests, by how they ended", ["model", "code"], registry=self._registry
        )
        self._responses = Counter(
            "llava_http_responses",
            "HTTP responses of all routes",
            ["status", "code"],
            registry=self._registry,
        )
        self._tokens = Counter("llava_tokens", "Tokens", ["model", "kind"], registry=self._registry)
        self._first_token = Histogram(
            "llava_time_to_first_token_seconds",
            "From a request to its first piece of text",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._total = Histogram(
            "llava_request_seconds",
            "From a request to the end of its answer",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def begin(self, model: str) -> RequestClock:
        """A chat request to `model` came in."""
        return RequestClock(self, model)

    def count_response(self, status: int, code: str) -> None:
        """A response began; `code` of an error, or "ok"."""
        self._responses.labels(str(status), code).inc()

    def count_request(self, model: str, code: str, total_s: float) -> None:
        """A chat request ended."""
        self._requests.labels(model, code).inc()
        self._total.labels(model).observe(total_s)

    def count_first_token(self, model: str, seconds: float) -> None:
        """The first piece of an answer is there."""
        self._first_token.labels(model).observe(seconds)

    def count_tokens(self, model: str, answers: Sequence[Answer]) -> None:
        """Answers are complete."""
        self._tokens.labels(model, "prompt").inc(answers[0].num_prompt_tokens)
        self._tokens.labels(model, "cached").inc(answers[0].num_cached_tokens)
        self._tokens.labels(model, "new").inc(sum(answer.num_new_tokens for answer in answers))

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class RequestClock:
    """The times of one chat request."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._start = perf_counter()
        self._has_first = False

    def note_event(self) -> None:
        """Something came of the request; the first time is the first token."""
        if not self._has_first:
            self._has_first = True
            self._metrics.count_first_token(self._model, perf_counter() - self._start)

    def end(self, answers: Sequence[Answer]) -> None:
        """The request is answered."""
        self._metrics.count_tokens(self._model, answers)
        self.end_by(OK)

    def end_by(self, code: str) -> None:
        """The request ended by an error, or "ok"."""
        self._metrics.count_request(self._model, code, perf_counter() - self._start)

    def __enter__(self) -> RequestClock:
        """Count the error that ends the block, if one does."""
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Count by the error's code; what is none of ours is "internal", or a client that left."""
        if isinstance(error, LlavaError):
            self.end_by(error.code)
        elif error is not None:
            is_gone = isinstance(error, ClientGoneError | CancelledError | GeneratorExit)
            self.end_by(CLIENT_GONE if is_gone else InternalError.code)


class _EngineStatistics:
    """What queues and engines say about themselves, asked when Prometheus asks."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def describe(self) -> list[Metric]:
        return []  # so that registering does not ask engines that are not loaded yet

    def collect(self) -> Iterator[Metric]:
        gauges = {
            "llava_running": GaugeMetricFamily("llava_running", "Answers that run", labels=["model"]),
            "llava_waiting": GaugeMetricFamily("llava_waiting", "Requests that wait", labels=["model"]),
            "llava_cache_bytes": GaugeMetricFamily(
                "llava_cache_bytes", "Memory of remembered prompts", labels=["model"]
            ),
        }
        images = CounterMetricFamily("llava_images", "Pictures seen", labels=["model", "kind"])
        prompts = CounterMetricFamily(
            "llava_engine_prompt_tokens", "Prompt tokens computed and remembered", labels=["model", "kind"]
        )
        for model in self._models:
            statistics = model.queue.engine.statistics()
            gauges["llava_running"].add_metric([model.name], model.queue.num_running)
            gauges["llava_waiting"].add_metric([model.name], model.queue.num_waiting + statistics.num_waiting)
            gauges["llava_cache_bytes"].add_metric([model.name], statistics.cache_bytes)
            images.add_metric([model.name, "all"], statistics.num_images)
            images.add_metric([model.name, "cached"], statistics.num_cached_images)
            prompts.add_metric([model.name, "all"], statistics.num_prompt_tokens)
            prompts.add_metric([model.name, "cached"], statistics.num_cached_tokens)
        yield from (*gauges.values(), images, prompts)


class MetricsLayer:
    """Counts every response, by status and by the code of its error."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on and count."""

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                codes = [value.decode() for name, value in message["headers"] if name == ERROR_CODE_HEADER]
                self._metrics.count_response(message["status"], codes[0] if codes else OK)
            await send(message)

        await self._app(scope, receive, send_counted)
