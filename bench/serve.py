"""The servers over HTTP, against the original's worker, the bare engine and the clock.

    python -m bench.serve [--clients 8] [--rounds 3] [--only load ready]

load   So many clients at once, each with a chat of two turns about a picture of its own and a question
       without one. Ours: a worker behind a controller, and the API of `llava serve`, with the engine that is
       chosen for a model in 16 bits. Against them: `bench.serve_original`, asked directly, and the engine in
       this process without HTTP. Requests a second, the median and the 95th percentile of the seconds to the
       first text as a client sees it, bytes of an answer on the wire, answers with the same text.
ready  Seconds from the command `llava serve` to its readiness, with the embedded model.

Random weights of 110M parameters, greedy, two threads. All answer the same requests, in turns, round by
round; figures are medians over the rounds, ratios medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

import llava
from bench.engine_models import checkpoint
from bench.engine_workloads import Source
from bench.soak_processes import Server, free_ports
from llava.command import say
from llava.engine.protocol import Engine
from llava.engine.request import Request, SamplingParams
from llava.serve.framing import FrameDecoder
from llava.serve.http.running import wait_until_ready
from llava.serve.protocol import GenerateRequest
from llava.templates import PICTURE, Turn, get_template

ORIGINAL, WORKER, API, BARE = "original's worker", "controller, worker", "llava serve", "bare engine"
NUM_TOKENS = 24
NUM_TURNS = 2
NAME = "random"
TEMPLATE = "vicuna_v1"


class Call(NamedTuple):
    """A question in a dialogue, with its picture as the bytes of a PNG."""

    turns: tuple[Turn, ...]
    picture: bytes | None


class Served(NamedTuple):
    """An answer as its client saw it."""

    text: str
    first_s: float
    num_bytes: int


class Round(NamedTuple):
    """What the calls of a round came to for one of those who answer."""

    wall_s: float
    served: dict[tuple[int, int], Served]
    """By client and call."""

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return len(self.served) / self.wall_s

    def first(self, percentile: float) -> float:
        """Seconds to the first text, of this percentile."""
        return float(np.percentile([served.first_s for served in self.served.values()], percentile))


Peer = Callable[[httpx.Client, Call], Served]


def scripts_of(source: Source, num_clients: int) -> list[list[Call]]:
    """Return what each client asks; the answers within a dialogue are the source's words."""
    scripts = []
    for _ in range(num_clients):
        data = io.BytesIO()
        source.picture().save(data, "PNG")
        turns, calls = [source.question(12)], []
        for _ in range(NUM_TURNS):
            calls.append(Call(tuple(turns), data.getvalue()))
            turns += [Turn("assistant", (source.text(NUM_TOKENS),)), Turn("user", (source.text(12),))]
        calls.append(Call((Turn("user", (source.text(24),)),), None))
        scripts.append(calls)
    return scripts


def ask_worker(url: str, *, deltas: bool) -> Peer:
    """Ask a worker, or a controller, by the original's protocol."""

    def ask(client: httpx.Client, call: Call) -> Served:
        template = get_template(TEMPLATE)
        spans = template.render(call.turns, add_generation_prompt=True)
        prompt = "".join(span.text for span in spans)
        images = () if call.picture is None else (base64.b64encode(call.picture).decode(),)
        request = GenerateRequest(
            prompt,
            model=NAME,
            images=images,
            temperature=0.0,
            max_new_tokens=NUM_TOKENS,
            stop=template.stop_strings[:1],
            deltas=deltas,
        )
        begin, text, first_s, num_bytes, decoder = time.perf_counter(), "", 0.0, 0, FrameDecoder()
        with client.stream("POST", f"{url}/worker_generate_stream", json=request.to_json()) as response:
            for chunk in response.iter_raw():
                num_bytes += len(chunk)
                for frame in decoder.feed(chunk):
                    told = json.loads(frame)
                    assert not told["error_code"], told
                    text = text + told["delta"] if deltas else told["text"][len(prompt) :]
                    first_s = first_s or (time.perf_counter() - begin if text else 0.0)
        return Served(text, first_s, num_bytes)

    return ask


def ask_api(url: str) -> Peer:
    """Ask the OpenAI-compatible API."""

    def ask(client: httpx.Client, call: Call) -> Served:
        body = {
            "model": NAME,
            "messages": [_message(turn, call.picture) for turn in call.turns],
            "temperature": 0,
            "max_tokens": NUM_TOKENS,
            "stream": True,
        }
        begin, text, first_s, num_bytes = time.perf_counter(), "", 0.0, 0
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                num_bytes += len(line.encode()) + 1
                if line.startswith("data: {"):
                    told = json.loads(line.removeprefix("data: "))
                    text += "".join(choice["delta"].get("content") or "" for choice in told["choices"])
                    first_s = first_s or (time.perf_counter() - begin if text else 0.0)
        return Served(text, first_s, num_bytes)

    return ask


def _message(turn: Turn, picture: bytes | None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": part} for part in turn.content if isinstance(part, str) and part != "\n"
    ]
    if PICTURE in turn.content and picture is not None:
        address = "data:image/png;base64," + base64.b64encode(picture).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": address}})
    return {"role": turn.role, "content": parts}


def ask_engine(engine: Engine) -> Peer:
    """Ask the engine in this process."""

    def ask(_: httpx.Client, call: Call) -> Served:
        images = [] if call.picture is None else [call.picture]
        sampling = SamplingParams(max_new_tokens=NUM_TOKENS)
        begin, text, first_s = time.perf_counter(), "", 0.0
        for piece in engine.submit(Request(turns=call.turns, images=images, sampling=sampling)):
            text += piece
            first_s = first_s or time.perf_counter() - begin
        return Served(text, first_s, len(text.encode()))

    return ask


def run(peer: Peer, scripts: Sequence[Sequence[Call]]) -> Round:
    """Let one of those who answer answer every client's calls, a thread for each client."""
    served: dict[tuple[int, int], Served] = {}
    errors: list[BaseException] = []

    def client(index: int) -> None:
        try:
            with httpx.Client(timeout=300, trust_env=False) as http:
                for number, call in enumerate(scripts[index]):
                    served[index, number] = peer(http, call)
        except BaseException as error:  # shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(len(scripts))]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return Round(time.perf_counter() - begin, served)


@contextmanager
def peers_of(work: Path, num_threads: int) -> Iterator[dict[str, Peer]]:
    """Start everybody who answers."""
    folder = str(checkpoint("110M", work, in_half=True))
    ports = free_ports(4)
    urls = [f"http://localhost:{port}" for port in ports]
    (work / "logs").mkdir(exist_ok=True)
    servers = [
        Server(
            "controller", ["-m", "llava.serve.controller", f"--port={ports[0]}"], "ready at", work / "logs"
        ),
        Server(
            "worker",
            [
                *("-m", "llava.serve.model_worker", "--controller", urls[0], f"--port={ports[1]}"),
                *("--model-path", folder, f"--model-name={NAME}"),
            ],
            "registered at",
            work / "logs",
        ),
        Server(
            "serve",
            ["-m", "llava.cli", "serve", f"{NAME}={folder}", f"--port={ports[2]}"],
            "http://127",
            work / "logs",
        ),
        Server(
            "original",
            ["-m", "bench.serve_original", "--model-path", folder, f"--port={ports[3]}"],
            "ready",
            work / "logs",
        ),
    ]
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.close)
            server.start(num_threads=num_threads)
            server.wait_until_ready()
        engine = stack.enter_context(closing(llava.load(folder, engine="auto", device="cpu")))
        say(f"the engine of ours: {engine.name}")
        yield {
            ORIGINAL: ask_worker(f"http://127.0.0.1:{ports[3]}", deltas=False),
            WORKER: ask_worker(f"http://127.0.0.1:{ports[0]}", deltas=True),
            API: ask_api(f"http://127.0.0.1:{ports[2]}"),
            BARE: ask_engine(engine),
        }


def measure_load(peers: dict[str, Peer], num_clients: int, num_rounds: int, seed: int) -> None:
    """Print the table of a load."""
    source = Source(seed)
    for peer in peers.values():
        run(peer, [scripts_of(source, 1)[0][1:]])
    rounds: dict[str, list[Round]] = {name: [] for name in peers}
    for _ in range(num_rounds):
        scripts = scripts_of(source, num_clients)
        for name, peer in peers.items():
            rounds[name].append(run(peer, scripts))
    say(f"{num_clients} clients, {num_clients * (NUM_TURNS + 1)} requests a round, {num_rounds} rounds")
    say(
        f"{'':<20}{'requests/s':>11}{'times':>7}{'of bare':>9}{'first p50, s':>14}{'p95, s':>8}"
        f"{'bytes':>8}{'same text':>11}"
    )
    for name, found in rounds.items():
        same, num = _same(found, rounds[ORIGINAL])
        say(
            f"{name:<20}{_median(one.per_second for one in found):>11.2f}"
            f"{_ratio(found, rounds[ORIGINAL]):>7.2f}{_ratio(found, rounds[BARE]):>9.2f}"
            f"{_median(one.first(50) for one in found):>14.2f}{_median(one.first(95) for one in found):>8.2f}"
            f"{_median(served.num_bytes for one in found for served in one.served.values()):>8.0f}"
            f"{f'{same} of {num}':>11}"
        )


def _same(rounds: Sequence[Round], others: Sequence[Round]) -> tuple[int, int]:
    """Count the answers with the same text, white space aside: the original streamer loses some."""
    pairs = [
        (one.served[key].text.split(), other.served[key].text.split())
        for one, other in zip(rounds, others, strict=True)
        for key in one.served
    ]
    return sum("".join(one) == "".join(other) for one, other in pairs), len(pairs)


def _median(values: Iterator[float] | Sequence[float]) -> float:
    return float(statistics.median(values))


def _ratio(rounds: Sequence[Round], others: Sequence[Round]) -> float:
    return _median([a.per_second / b.per_second for a, b in zip(rounds, others, strict=True)])


def measure_ready(num_times: int) -> None:
    """Print how long `llava serve` takes to be ready, with the embedded model."""
    seconds = []
    for _ in range(num_times):
        port = free_ports(1)[0]
        begin = time.perf_counter()
        command = [sys.executable, "-m", "llava.cli", "serve", f"--port={port}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", timeout_s=120)
            seconds.append(time.perf_counter() - begin)
        finally:
            process.terminate()
            process.wait()
    say(f"llava serve is ready after {', '.join(f'{one:.1f}' for one in seconds)} s")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("load", "ready"), nargs="+", default=["load", "ready"])
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for models and logs; default: a temporary one")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if "ready" in args.only:
        measure_ready(3)
    if "load" in args.only:
        with tempfile.TemporaryDirectory() as temporary:
            work = args.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            os.environ |= {"XDG_CACHE_HOME": str(work / "cache"), "OMP_NUM_THREADS": str(args.threads)}
            with peers_of(work, args.threads) as peers:
                for number in args.clients:
                    measure_load(peers, number, args.rounds, args.seed)


if __name__ == "__main__":
    main()
