"""The servers under load and faults: nothing is lost without a word, nothing grows, signals end in order.

    python -m bench.soak [--requests 10000] [--clients 12] [--seed 0]

Starts a controller, two workers and `llava serve` with the embedded model, each a process of its own. Clients
ask chats with and without pictures, read slowly, leave in the middle of an answer, send what cannot be. In
the first part of the run, faults come one after the other, over and over:

kill        a worker gets SIGKILL in the middle of an answer, and is started again
freeze      a worker is stopped for 8 s and goes on
controller  the controller gets SIGKILL and is started again
drain       a worker gets SIGTERM under load, and is started again
silent      connections fall silent: in their headers, in their body, without reading the answer
flood       200 connections at once

Then the last three go on, and memory and descriptors of the four processes must stay as they are. In the end
all get signals: the first must lose nothing, the second must end at once. What is checked is in the table;
the exit code is 1 when something does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from bench.soak_clients import ANSWER, BROKEN, Clients, Ended, make_tasks
from bench.soak_processes import Drift, Place, Server, drift_of
from llava.command import note, say

NUM_FLOOD = 200
FROZEN_S = 8.0
"""Longer than a worker may say nothing in an answer."""
CALM_S = 2.0
"""Between two faults; and how long after one its consequences may still be seen."""
FAULTY_PART = 0.4
"""Of the requests, in which processes are ended and started again."""
WARM_PART = 0.5
"""Of the requests, after which memory and descriptors are measured."""
MEMORY_SHARE = 0.05
DESCRIPTORS_MORE = 4
HEADER_S = 20.0
LONGEST_S = 30.0
"""No request may take longer."""


class Window(NamedTuple):
    """A fault, and what may end requests while it lasts."""

    name: str
    begin: float
    end: float
    allowed: frozenset[str]
    facts: str


class Check(NamedTuple):
    """Something that must hold."""

    what: str
    measured: str
    holds: bool


class Faults:
    """Injects faults, one after the other."""

    def __init__(self, place: Place, clients: Clients) -> None:
        """To be used within one event loop."""
        self.windows: list[Window] = []
        self._place = place
        self._clients = clients
        self._silent: list[tuple[float, socket.socket]] = []
        self.num_silent = 0
        self.num_ended_silent = 0
        """Connections that said half of their headers, and how many of them the servers have ended."""

    async def run(self, num_faulty: int) -> None:
        """Inject until cancelled; after `num_faulty` requests only what ends no process."""
        lost = frozenset({"worker-lost"})
        harsh: list[tuple[str, Callable[[], Awaitable[str]], frozenset[str]]] = [
            ("kill", self._kill, lost),
            ("controller", self._restart_controller, frozenset({BROKEN, "not-found", "unavailable"})),
            ("drain", self._drain, frozenset()),
        ]
        mild: list[tuple[str, Callable[[], Awaitable[str]], frozenset[str]]] = [
            ("freeze", self._freeze, lost),
            ("silent", self._fall_silent, frozenset()),
            ("flood", self._flood, frozenset({"server-busy"})),
        ]
        while True:
            for name, inject, allowed in [*harsh, *mild]:
                if name in ("kill", "controller", "drain") and len(self._clients.ended) > num_faulty:
                    continue
                begin = time.monotonic()
                facts = await inject()
                self.windows.append(Window(name, begin, time.monotonic() + CALM_S, allowed, facts))
                self._look_at_silent()
                await asyncio.sleep(2 * CALM_S)

    async def _kill(self) -> str:
        worker = self._place.workers[0]
        expected = frozenset({ANSWER, "worker-lost"})
        # Both workers get some.
        doomed = [
            asyncio.create_task(
                self._clients.note("as a worker dies", lambda: self._clients.worker_long_at(None), expected)
            )
            for _ in range(4)
        ]
        await asyncio.sleep(0.3)
        worker.signal(signal.SIGKILL)
        worker.exit_code(5)
        await asyncio.gather(*doomed)
        return await self._start_again(worker)

    async def _drain(self) -> str:
        worker = self._place.workers[0]
        worker.signal(signal.SIGTERM)
        code = await asyncio.to_thread(worker.exit_code, 30)
        return ("" if code == 0 else f"exit code {code}; ") + await self._start_again(worker)

    async def _start_again(self, server: Server) -> str:
        server.start()
        await asyncio.to_thread(server.wait_until_ready)
        took_s = await asyncio.to_thread(self._place.wait_for_workers, 2)
        return f"both workers known {took_s:.1f} s after it was ready"

    async def _restart_controller(self) -> str:
        controller = self._place.controller
        controller.signal(signal.SIGKILL)
        controller.exit_code(5)
        controller.start()
        await asyncio.to_thread(controller.wait_until_ready)
        took_s = await asyncio.to_thread(self._place.wait_for_workers, 2)
        return f"both workers known {took_s:.1f} s after it was ready"

    async def _freeze(self) -> str:
        worker = self._place.workers[1]
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        num_known = len(await asyncio.to_thread(self._place.registered))
        worker.signal(signal.SIGCONT)
        took_s = await asyncio.to_thread(self._place.wait_for_workers, 2)
        return f"{num_known} known while frozen, back after {took_s:.1f} s"

    async def _flood(self) -> str:
        begin = time.monotonic()
        await self._clients.flood(NUM_FLOOD)
        return f"{NUM_FLOOD} ended in {time.monotonic() - begin:.1f} s"

    async def _fall_silent(self) -> str:
        half_head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Ty"
        head = (
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n"
        )
        whole = b'{"prompt": "USER: hello ASSISTANT:", "model": "tiny", "messages": []}'
        for url in (self._place.controller_url, *self._place.worker_urls, self._place.serve_url):
            path = b"/v1/chat/completions" if url == self._place.serve_url else b"/worker_generate_stream"
            for data in (half_head, head % (path, 1000) + whole, head % (path, len(whole)) + whole):
                for _ in range(4):
                    connection = socket.create_connection(
                        ("127.0.0.1", int(urlsplit(url).port or 0)), timeout=5
                    )
                    connection.sendall(data)
                    if data is half_head:
                        self.num_silent += 1
                        self._silent.append((time.monotonic(), connection))
                        continue
                    await asyncio.sleep(0.05)
                    # The other side learns that nobody is there, and nothing else.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.close()
        return f"{len(self._silent)} half headers open"

    def _look_at_silent(self) -> None:
        """Count those among the silent that the servers have ended, and close all whose time is over."""
        kept = []
        for since, connection in self._silent:
            if time.monotonic() < since + HEADER_S + 2:
                kept.append((since, connection))
                continue
            connection.setblocking(False)
            try:
                self.num_ended_silent += connection.recv(1) == b""
            except BlockingIOError:
                pass
            except ConnectionError:
                self.num_ended_silent += 1
            connection.close()
        self._silent = kept

    async def wait_for_silent(self) -> None:
        """Wait until the last silent connection should have been ended."""
        while self._silent:
            await asyncio.sleep(1)
            self._look_at_silent()


async def soak(place: Place, args: argparse.Namespace) -> list[Check]:
    """Run load and faults, then the signals; returns what was checked."""
    clients = Clients(place, make_tasks(), args.seed)
    faults = Faults(place, clients)
    begin = time.monotonic()
    watching = asyncio.create_task(_watch(place, clients, args.requests))
    injecting = asyncio.create_task(faults.run(int(args.requests * FAULTY_PART)))
    loading = asyncio.create_task(clients.run(args.requests, args.clients))
    await asyncio.wait({loading, injecting, watching}, return_when=asyncio.FIRST_COMPLETED)
    for task in (injecting, watching):
        if task.done():
            task.result()  # it ends before the load only by an error
        task.cancel()
    await loading
    took_s = time.monotonic() - begin
    await faults.wait_for_silent()
    say(f"{len(clients.ended)} requests of {args.clients} clients in {took_s:.0f} s")
    _print_requests(clients.ended)
    _print_faults(faults.windows)
    drifts = {server.name: drift_of(server, int(args.requests * WARM_PART)) for server in place.servers}
    checks = [*_request_checks(clients.ended, faults), *_drift_checks(drifts)]
    checks += await _signal_checks(place, clients)
    checks.append(_log_check(place))
    await clients.close()
    return checks


async def _watch(place: Place, clients: Clients, num_requests: int) -> None:
    said = 0
    while True:
        for server in place.servers:
            server.sample(len(clients.ended))
        if len(clients.ended) * 10 // num_requests > said:
            said = len(clients.ended) * 10 // num_requests
            note(f"{len(clients.ended)} requests")
        await asyncio.sleep(0.5)


def _print_requests(ended: Sequence[Ended]) -> None:
    counts = Counter((one.kind, one.outcome.partition(":")[0]) for one in ended)
    say(f"{'request':<22}{'ended as':<16}{'how often':>10}")
    for (kind, outcome), count in sorted(counts.items()):
        say(f"{kind:<22}{outcome:<16}{count:>10}")


def _print_faults(windows: Sequence[Window]) -> None:
    say(f"{'fault':<12}{'times':>6}  the last one")
    for name in dict.fromkeys(window.name for window in windows):
        found = [window for window in windows if window.name == name]
        say(f"{name:<12}{len(found):>6}  {found[-1].facts}")


def _request_checks(ended: Sequence[Ended], faults: Faults) -> list[Check]:
    valid = [one for one in ended if ANSWER in one.expected]
    wrong = [one for one in ended if one.outcome.startswith("wrong text")]
    uncalled = [one for one in ended if not _is_explained(one, faults.windows)]
    for one in [*wrong, *uncalled][:10]:
        note(f"{one.kind}: {one.outcome}")
    num_failed = sum(one.outcome != ANSWER for one in valid)
    longest_s = max(one.end - one.begin for one in ended)
    return [
        Check("an answer or a coded error ends every request", f"{len(uncalled)} did not", not uncalled),
        Check("answers at temperature 0 are the expected text", f"{len(wrong)} were not", not wrong),
        Check("faults cost few of the valid requests", f"{num_failed} of {len(valid)}", True),
        Check("the longest request", f"{longest_s:.1f} s", longest_s < LONGEST_S),
        Check(
            f"half headers are given up after {HEADER_S:g} s",
            f"{faults.num_ended_silent} of {faults.num_silent}",
            faults.num_ended_silent == faults.num_silent,
        ),
    ]


def _is_explained(one: Ended, windows: Sequence[Window]) -> bool:
    """Tell whether a request ended as it should, or by a fault of its time that may end it so."""
    outcome = one.outcome.partition(":")[0]
    return outcome in one.expected or any(
        outcome in window.allowed and one.end >= window.begin and one.begin <= window.end
        for window in windows
    )


def _drift_checks(drifts: dict[str, Drift]) -> list[Check]:
    checks = []
    for name, drift in drifts.items():
        megabytes = f"{drift.first_bytes / 1e6:.0f} to {drift.last_bytes / 1e6:.0f} MB"
        checks.append(
            Check(
                f"memory of {name}, over {drift.num_requests} requests",
                f"{megabytes} ({drift.share:+.1%})",
                abs(drift.share) <= MEMORY_SHARE,
            )
        )
        more = drift.last_descriptors - drift.first_descriptors
        checks.append(
            Check(
                f"descriptors of {name}",
                f"{drift.first_descriptors:g} to {drift.last_descriptors:g}",
                more <= DESCRIPTORS_MORE,
            )
        )
    return checks


async def _signal_checks(place: Place, clients: Clients) -> list[Check]:
    """End everything while long answers run: `llava serve` and worker 1 by one signal, the others by two."""
    serve, controller, (first, second) = place.serve, place.controller, place.workers
    checks = []
    for server, url in ((serve, None), (first, place.worker_urls[0])):
        running = [_long(clients, url) for _ in range(8)]
        await asyncio.sleep(0.5)
        num_done = sum(task.done() for task in running)
        server.signal(signal.SIGTERM)
        outcomes = Counter(await asyncio.gather(*running))
        code = await asyncio.to_thread(server.exit_code, 35)
        checks.append(
            Check(
                f"SIGTERM of {server.name} with {8 - num_done} answers running",
                f"{outcomes[ANSWER]} complete, exit code {code}",
                outcomes[ANSWER] == 8 and code == 0,
            )
        )
    for server, url in ((second, place.worker_urls[1]), (controller, place.controller_url)):
        if server is controller:
            second.start()
            await asyncio.to_thread(second.wait_until_ready)
        running = [_long(clients, url) for _ in range(8)]
        await asyncio.sleep(0.5)
        server.signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        begin = time.monotonic()
        with suppress(ProcessLookupError):
            server.signal(signal.SIGTERM)
        code = await asyncio.to_thread(server.exit_code, 5)
        took_s = time.monotonic() - begin
        await asyncio.gather(*running)
        checks.append(
            Check(
                f"a second signal ends {server.name} at once",
                f"{took_s:.2f} s, exit code {code}",
                code == 130,
            )
        )
    return checks


def _long(clients: Clients, url: str | None) -> asyncio.Task[str]:
    async def ask() -> str:
        ask_it = clients.api_long if url is None else lambda: clients.worker_long_at(url)
        return await clients.note("at the end", ask_it, frozenset({ANSWER}))

    return asyncio.create_task(ask())


def _log_check(place: Place) -> Check:
    tracebacks = [path.name for path in place.folder.glob("*.log") if "Traceback" in path.read_text()]
    return Check("no traceback in any log", ", ".join(tracebacks) or "none", not tracebacks)


def main() -> int:
    """Read the command line, run, and print what was checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the logs; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        place = Place(work, args.engine)
        try:
            place.start()
            checks = asyncio.run(soak(place, args))
        finally:
            place.close()
    say(f"{'check':<62}{'measured':<34}holds")
    for check in checks:
        say(f"{check.what:<62}{check.measured:<34}{'yes' if check.holds else 'NO'}")
    return int(not all(check.holds for check in checks))


if __name__ == "__main__":
    sys.exit(main())
