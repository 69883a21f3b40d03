"""The models of a server, by name."""

from __future__ import annotations

import pytest

from llava.errors import NotFoundError, UnavailableError, UsageError
from llava.serve.served import ServedModels
from tests.serve.engines import EchoEngine


def test_models_are_found_by_name_and_the_first_without_one() -> None:
    models = ServedModels()
    with pytest.raises(UnavailableError, match="no model is loaded"):
        models.get(None)
    models.add("one", EchoEngine())
    models.add("two", EchoEngine())
    assert [model.name for model in models] == ["one", "two"]
    assert models.get(None).name == "one"
    assert models.get("two").name == "two"
    with pytest.raises(NotFoundError, match="no model 'three'") as caught:
        models.get("three")
    assert caught.value.remedy == "There is: one, two."


def test_two_models_of_one_name_are_refused() -> None:
    models = ServedModels()
    models.add("one", EchoEngine())
    with pytest.raises(UsageError, match="two models are called one"):
        models.add("one", EchoEngine())


def test_closing_closes_every_engine() -> None:
    engines = [EchoEngine(), EchoEngine()]
    models = ServedModels()
    for number, engine in enumerate(engines):
        models.add(str(number), engine)
    models.close()
    assert [engine.is_closed for engine in engines] == [True, True]
