"""`llava serve --ray` on three nodes of this machine: the real openai client, and a node killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

pytest.importorskip("ray")

from llava.demo import example_images
from tests.engine.formats import BAD_SCHEMAS, SCHEMA, assert_fits
from tests.serve.servers import wait_until
from tests.serve.test_serve_command import MODEL, QUESTION, question, response_format

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="signals"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without room for replicas, and two nodes with room for one each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def process(cluster: Any) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, "-m", "llava.cli", "serve", "--ray-address", cluster.address, "--json"]
    command += ["--min-replicas", "2", "--engine", "torch", "--device", "cpu", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            assert line, running.stderr and running.stderr.read()
            yield running, json.loads(line)
        finally:
            running.kill()


def client_of(process: tuple[subprocess.Popen[str], dict[str, Any]]) -> openai.OpenAI:
    return openai.OpenAI(base_url=process[1]["url"] + "/v1", api_key="none", max_retries=0, timeout=120)


def num_replicas() -> int:
    from ray import serve

    deployment = serve.status().applications[f"llava-{MODEL}"].deployments["model"]
    return int(deployment.replica_states.get("RUNNING", 0))


class Traffic:
    """Clients that stream one long answer after the other; every end is noted."""

    def __init__(self, client: openai.OpenAI, num_clients: int) -> None:
        self.ends: list[str] = []
        """"stop" and "length", or the code of an error."""
        self._client = client
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(index,)) for index in range(num_clients)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, index: int) -> None:
        fields: dict[str, Any] = {"model": MODEL, "temperature": 2, "max_tokens": 300, "stream": True}
        while not self._is_over.is_set():
            try:
                messages = question(text=f"Question of client {index}.")
                chunks = list(self._client.chat.completions.create(messages=messages, **fields))
                self.ends.append(str(chunks[-1].choices[0].finish_reason))
            except openai.APIError as error:
                self.ends.append(str(error.code))


def test_the_api_is_that_of_one_machine(process: tuple[subprocess.Popen[str], dict[str, Any]]) -> None:
    client = client_of(process)
    assert num_replicas() == 2
    assert [model.id for model in client.models.list()] == [MODEL]
    fields: dict[str, Any] = {"model": MODEL, "messages": question(example_images()[0]), "temperature": 0}
    whole = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
    chunks = list(client.chat.completions.create(**fields, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 2
    assert whole.choices[0].logprobs is not None
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=question(text="word " * 5000))
    assert caught.value.code == "context-length"
    held = client.chat.completions.create(
        **fields | {"temperature": 2}, response_format=response_format(SCHEMA)
    )
    assert_fits(held.choices[0].message.content or "")
    with pytest.raises(openai.BadRequestError, match="cannot be held to this JSON schema"):
        client.chat.completions.create(**fields | {"response_format": response_format(BAD_SCHEMAS[0])})


def test_a_conversation_stays_with_the_replica_that_remembers_it(
    process: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    client = client_of(process)
    for path in example_images()[:4]:
        messages = question(path)
        for _ in range(2):
            made = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
            messages += [
                {"role": "assistant", "content": made.choices[0].message.content},
                {"role": "user", "content": QUESTION},
            ]
        assert made.usage is not None
        assert made.usage.prompt_tokens_details is not None
        assert (made.usage.prompt_tokens_details.cached_tokens or 0) > 50


def test_a_node_killed_in_mid_traffic_costs_what_it_was_working_on(
    cluster: Any, process: tuple[subprocess.Popen[str], dict[str, Any]]
) -> None:
    client = client_of(process)
    traffic = Traffic(client, 8)
    try:
        time.sleep(4)
        before = list(traffic.ends)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(num_cpus=1)
        wait_until(lambda: num_replicas() < 2, timeout_s=90)
        wait_until(lambda: num_replicas() == 2, timeout_s=90)
        during = list(traffic.ends)
        time.sleep(4)
    finally:
        traffic.close()
    assert before
    assert set(before) <= {"stop", "length"}
    lost = traffic.ends.count("worker-lost")
    # No client had more than one request on the node.
    assert 1 <= lost <= 8, traffic.ends
    assert set(traffic.ends) <= {"stop", "length", "worker-lost"}
    after = traffic.ends[len(during) :]
    assert len(after) > 4
    assert "worker-lost" not in after
    assert client.chat.completions.create(model=MODEL, messages=question(example_images()[0])).choices


def test_a_signal_drains_and_ends_the_replicas(
    process: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    from ray import serve

    client = client_of(process)
    fields: dict[str, Any] = {"model": MODEL, "temperature": 2, "max_tokens": 500, "stream": True}
    stream = iter(client.chat.completions.create(messages=question(text="A long one."), **fields))
    next(stream)
    process[0].send_signal(signal.SIGTERM)
    assert list(stream)[-1].choices[0].finish_reason in ("stop", "length")
    _, complaints = process[0].communicate(timeout=60)
    assert process[0].returncode == 0
    assert "Traceback" not in complaints
    assert serve.status().applications == {}
