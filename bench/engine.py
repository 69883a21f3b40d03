"""How fast the engines answer, against transformers' `generate` and the original worker's way of using it.

    python -m bench.engine [--only single clients chats yesno] [--shape 110M|1.1B] [--rounds 5]

single   One cold request at a time (a new picture and question): seconds to the first token, milliseconds
         for each further one, the share of the memory's bandwidth that decoding reaches, and both over
         `generate`.
clients  8 and 16 clients with 2 requests each, all different, 32 new tokens: requests a second, and the 95th
         percentile of the time to the first token, over a thread for each request, five at once.
chats    8 chats of three turns about one picture each.
yesno    18 questions about one picture, over `generate` one by one.

Random weights, greedy, two threads. Who is compared takes turns with the others, round by round, in one
process; figures are medians over the rounds, ratios medians of the rounds' ratios. Converted models are kept
in the work folder.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import llava
from bench.engine_models import SHAPES, checkpoint
from bench.engine_peers import ORIGINAL_CONCURRENCY, EnginePeer, GeneratePeer, Peer
from bench.engine_workloads import SINGLE_TOKENS, Load, Source, chats, clients, single, yes_or_no
from llava.command import say
from llava.engine.llama_cpp import LlamaCppEngine
from llava.engine.openvino.support import WEIGHT_FORMATS
from llava.engine.openvino_engine import OpenVinoEngine
from llava.engine.protocol import Engine
from llava.export.gguf import export_gguf
from llava.model.builder import LoadOptions, load_model
from llava.serve.bench.bandwidth import read_bandwidth

NUM_THREADS = 2
GENERATE, THREADS = "generate", "threads"
BYTES = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "int8": 1.0,
    "int4": 0.5,
    "F16": 2.0,
    "Q8_0": 1.0,
    "Q4_K_M": 0.6,
}
"""Of a weight of a linear layer, scales left out."""


def peers_of(shape: str, work: Path, names: list[str]) -> dict[str, Peer]:
    """Return those who answer, warm."""
    folder = checkpoint(shape, work)
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    loaded = load_model(folder, LoadOptions(device="cpu", dtype="float32"))
    peers: dict[str, Peer] = {
        GENERATE: GeneratePeer(loaded, concurrency=1),
        THREADS: GeneratePeer(loaded, concurrency=ORIGINAL_CONCURRENCY),
    }
    for name in names:
        peers[name] = EnginePeer(engine_of(name, folder, work))
    warm = Source(0)
    for peer in peers.values():
        single(peer, warm)
    return peers


def engine_of(name: str, folder: Path, work: Path) -> Engine:
    """Return the engine of a name: "torch", "openvino int8", "openvino bfloat16", "llama.cpp Q8_0"."""
    kind, _, form = name.partition(" ")
    if kind == "torch":
        return llava.load(folder, device="cpu", dtype="float32")
    if form == "bfloat16":
        return OpenVinoEngine.load(folder, format="float16", precision="bfloat16")
    if kind == "openvino":
        return OpenVinoEngine.load(folder, format=next(known for known in WEIGHT_FORMATS if known == form))
    target = work / f"{folder.name}-{form}"
    if not target.exists():
        target.mkdir()
        export_gguf(folder, target, type=form)
    return LlamaCppEngine.load(target, num_threads=NUM_THREADS, num_slots=8, context_length=512)


def linear_bytes(shape: str, name: str) -> float:
    """Return the bytes of weights that one token reads."""
    sizes = SHAPES[shape]
    hidden, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    kv_share = sizes["num_key_value_heads"] / sizes["num_attention_heads"]
    per_layer = hidden * hidden * (2 + 2 * kv_share) + 3 * hidden * sizes["intermediate_size"]
    return (layers * per_layer + 32064 * hidden) * BYTES.get(name.rsplit(" ", 1)[-1], 4.0)


def measure_single(peers: dict[str, Peer], shape: str, rounds: int, seed: int) -> None:
    """Print the table of single streams."""
    bandwidth = read_bandwidth(torch.device("cpu"))
    firsts: dict[str, list[float]] = {name: [] for name in peers if name != THREADS}
    steps: dict[str, list[float]] = {name: [] for name in firsts}
    source = Source(seed)
    for _ in range(rounds):
        for name in firsts:
            served = single(peers[name], source)
            firsts[name].append(served.first_s)
            steps[name].append((served.total_s - served.first_s) / (SINGLE_TOKENS - 1))
    say(f"{shape}, one stream, {rounds} rounds; memory reads {bandwidth / 1e9:.1f} GB/s")
    say(f"{'':<20}{'first, ms':>10}{'over':>7}{'ms/token':>10}{'times as fast':>15}{'of bandwidth':>14}")
    for name in firsts:
        step = statistics.median(steps[name])
        first_over = ratio(firsts[name], firsts[GENERATE])
        faster = ratio(steps[GENERATE], steps[name])
        share = linear_bytes(shape, name) / step / bandwidth
        say(
            f"{name:<20}{statistics.median(firsts[name]) * 1e3:>10.0f}{first_over:>7.2f}{step * 1e3:>10.1f}"
            f"{faster:>15.2f}{share:>14.0%}"
        )


def measure_load(
    peers: dict[str, Peer], title: str, against: str, rounds: int, run: Callable[[Peer], Load]
) -> None:
    """Print the table of a workload."""
    others = [name for name in peers if name not in (GENERATE, THREADS)]
    loads: dict[str, list[Load]] = {name: [] for name in (against, *others)}
    for _ in range(rounds):
        for name, found in loads.items():
            found.append(run(peers[name]))
    say(f"{title}, {rounds} rounds")
    say(f"{'':<20}{'requests/s':>12}{'times':>8}{'first p50, s':>14}{'p95, s':>9}")
    base = [load.per_second for load in loads[against]]
    for name, found in loads.items():
        rates = [load.per_second for load in found]
        say(
            f"{name:<20}{statistics.median(rates):>12.2f}{ratio(rates, base):>8.2f}"
            f"{statistics.median(load.first(50) for load in found):>14.2f}"
            f"{statistics.median(load.first(95) for load in found):>9.2f}"
        )


def ratio(values: list[float], others: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("single", "clients", "chats", "yesno"), nargs="+")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="110M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="+", default=["torch", "openvino float16", "openvino int8"])
    parser.add_argument("--work", type=Path, help="folder for models; default: a temporary one")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    wanted = args.only or ["single", "clients", "chats", "yesno"]
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        peers = peers_of(args.shape, work, args.engines)
        source = Source(args.seed)
        if "single" in wanted:
            measure_single(peers, args.shape, args.rounds, args.seed + 1)
        if "clients" in wanted:
            for num_clients in (8, 16):
                title = f"{args.shape}, {num_clients} clients"
                measure_load(
                    peers,
                    title,
                    THREADS,
                    args.rounds,
                    partial(clients, source=source, num_clients=num_clients),
                )
        if "chats" in wanted:
            measure_load(
                peers,
                f"{args.shape}, 8 chats",
                THREADS,
                args.rounds,
                partial(chats, source=source, num_clients=8),
            )
        if "yesno" in wanted:
            title = f"{args.shape}, 18 questions about one picture"
            measure_load(peers, title, GENERATE, args.rounds, partial(yes_or_no, source=source))


if __name__ == "__main__":
    main()
