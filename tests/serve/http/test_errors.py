"""Errors as answers: the status of every class, the shape, and nothing private in it."""

from __future__ import annotations

import logging

import pytest
from fastapi import FastAPI, HTTPException

from llava import errors
from llava.errors import LlavaError
from llava.serve.http.access import Access
from llava.serve.http.errors import error_fields, treatment_of
from llava.serve.http.lifecycle import Lifecycle
from llava.serve.http.limits import Limits
from llava.serve.http.stack import new_app, protect
from tests.serve.servers import error_of, live

PATH = "/home/somebody/models/secret-model"
STATUSES = {
    errors.UsageError: 400,
    errors.ConfigError: 400,
    errors.DependencyError: 500,
    errors.FileError: 500,
    errors.ImageError: 400,
    errors.ImageLimitError: 400,
    errors.CheckpointError: 500,
    errors.WeightsError: 500,
    errors.TokenizerError: 500,
    errors.PromptError: 400,
    errors.PlaceholderError: 400,
    errors.ContextLengthError: 400,
    errors.DataError: 500,
    errors.EngineError: 503,
    errors.EngineBusyError: 429,
    errors.RemoteError: 503,
    errors.TrainingError: 500,
    errors.RankError: 500,
    errors.ServingError: 500,
    errors.RequestError: 400,
    errors.AuthenticationError: 401,
    errors.AccessError: 403,
    errors.NotFoundError: 404,
    errors.MethodError: 405,
    errors.RequestTimeoutError: 408,
    errors.TooLargeError: 413,
    errors.ServerBusyError: 429,
    errors.UnavailableError: 503,
    errors.AnswerTimeoutError: 504,
    errors.InternalError: 500,
    LlavaError: 500,
}


def app_that_raises(error: Exception) -> FastAPI:
    app = new_app()

    @app.get("/")
    def fail() -> None:
        raise error

    return app


def protected(app: FastAPI) -> object:
    return protect(app, Access(), limits=Limits(), lifecycle=Lifecycle("ready"))


@pytest.mark.parametrize("kind", STATUSES)
def test_every_class_has_its_status(kind: type[LlavaError]) -> None:
    assert treatment_of(kind("x")).status == STATUSES[kind]


@pytest.mark.parametrize("kind", [errors.ImageError, errors.WeightsError, errors.EngineBusyError])
def test_an_error_is_answered_with_code_remedy_and_request_id(kind: type[LlavaError]) -> None:
    app = protect(
        app_that_raises(kind("it is so", remedy="Do this.")),
        Access(),
        limits=Limits(),
        lifecycle=Lifecycle("ready"),
    )
    with live(app) as client:
        response = client.get("/", headers={"X-Request-Id": "given-by-proxy"})
    assert response.status_code == STATUSES[kind]
    error = error_of(response)
    assert error["code"] == kind.code == response.headers["x-error-code"]
    assert error["request_id"] == "given-by-proxy"
    is_clients = STATUSES[kind] < 500
    assert (error["message"], error["remedy"]) == ("it is so", "Do this.") or not is_clients
    assert ("retry-after" in response.headers) == (response.status_code == 429)


def test_what_concerns_the_operator_is_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    app = protect(
        app_that_raises(errors.CheckpointError(f"{PATH} has no config.json", remedy=f"Look into {PATH}")),
        Access(),
        limits=Limits(),
        lifecycle=Lifecycle("ready"),
    )
    with caplog.at_level(logging.ERROR), live(app) as client:
        response = client.get("/")
    assert "secret" not in response.text
    assert error_of(response)["message"] == "The model's files cannot be used"
    assert f"request {response.headers['x-request-id']}: {PATH} has no config.json" in caplog.text


def test_an_unexpected_exception_is_internal_and_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = protect(app_that_raises(KeyError(PATH)), Access(), limits=Limits(), lifecycle=Lifecycle("ready"))
    with caplog.at_level(logging.ERROR), live(app) as client:
        response = client.get("/")
    assert (response.status_code, error_of(response)["code"]) == (500, "internal")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "Traceback" in caplog.text
    assert caplog.text.count("KeyError") == 1
    assert response.headers["x-request-id"] in caplog.text


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (f"{PATH} is gone", "(hidden) is gone"),
        ("<_io.BytesIO object at 0x7f3a2b1c9d80>", "<_io.BytesIO object at (hidden)>"),
        (r"C:\Users\me\x.png is gone", "(hidden) is gone"),
        ("there is no model 'org/name'", "there is no model 'org/name'"),
        ("Write it as https://host/path/x.", "Write it as https://host/path/x."),
        ("the ratio is 3/4 and 1/2", "the ratio is 3/4 and 1/2"),
    ],
)
def test_paths_and_addresses_are_hidden_from_all_words(words: str, shown: str) -> None:
    assert error_fields(errors.ImageError(words), "req-1")["message"] == shown


def test_the_frameworks_own_errors_have_the_same_shape() -> None:
    app = app_that_raises(HTTPException(418, "I am a teapot"))

    @app.get("/number")
    def number(value: int) -> int:
        return value

    layered = protect(app, Access(), limits=Limits(), lifecycle=Lifecycle("ready"))
    with live(layered) as client:
        found = {
            path: client.request(method, path)
            for method, path in [
                ("GET", "/"),
                ("GET", "/nowhere"),
                ("POST", "/number"),
                ("GET", "/number?value=x"),
            ]
        }
    statuses = {path: (response.status_code, error_of(response)["code"]) for path, response in found.items()}
    assert statuses == {
        "/": (400, "request"),
        "/nowhere": (404, "not-found"),
        "/number": (405, "method"),
        "/number?value=x": (400, "request"),
    }
    assert error_of(found["/number"])["remedy"] == "Use GET."
    assert "query.value" in error_of(found["/number?value=x"])["message"]


def test_serving_errors_can_be_caught_together() -> None:
    for kind in (kind for kind in STATUSES if issubclass(kind, errors.ServingError)):
        with pytest.raises(errors.ServingError):
            raise kind("x")
    with pytest.raises(errors.InternalError):
        raise errors.InternalError("x")
    with pytest.raises(errors.MethodError):
        raise errors.MethodError("x")
