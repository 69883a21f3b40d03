"""The options that choose a judge, and the judge they lead to. Imports nothing heavy."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava.engine.model_options import API_KEY_VARIABLE
from llava.errors import UsageError

if TYPE_CHECKING:
    from llava.eval.judge.backends import Backend
    from llava.eval.judge.judge import Judge

URL_VARIABLE = "OPENAI_BASE_URL"
OPENAI_URL = "https://api.openai.com/v1"
DEFAULT_ANCHOR_ITEMS = 20
MIN_ANCHOR_ITEMS = 2
"""A spread needs as many."""


@dataclass(frozen=True)
class Judging:
    """How a judge's replies are read, and what it is asked besides to know how far to believe it."""

    is_compat: bool = False
    """Ask once, read scores as the original, and count what cannot be read as it does."""
    swaps: bool = False
    """Judge every pair of answers a second time, shown the other way round."""
    anchor: Path | None = None
    """An earlier store of replies to look for drift against."""
    num_anchor_items: int = DEFAULT_ANCHOR_ITEMS

    def __post_init__(self) -> None:
        if self.num_anchor_items < MIN_ANCHOR_ITEMS:
            raise UsageError(
                f"--anchor-items is {self.num_anchor_items}",
                remedy=f"Ask at least {MIN_ANCHOR_ITEMS} again: fewer have no spread.",
            )

    @property
    def asks_more(self) -> bool:
        """Whether the judge is asked more than its verdicts."""
        return self.swaps or self.anchor is not None


def add_judge_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare the options of everything that a judge scores."""
    parser.add_argument(
        "--judge-url",
        metavar="URL",
        help=f"OpenAI-compatible endpoint (default: ${URL_VARIABLE}, else OpenAI)",
    )
    parser.add_argument("--judge-model", metavar="NAME", help="what judges (default: the original's)")
    parser.add_argument(
        "--judge-path", metavar="PATH", help="a checkpoint, GGUF file or hub id that judges here instead"
    )
    parser.add_argument(
        "--judge-extra", metavar="JSON", help="fields to add to requests or replace; null removes one"
    )
    parser.add_argument("--judge-timeout", type=float, default=120.0, metavar="S", help="(%(default)s)")
    parser.add_argument("--store", type=Path, metavar="FILE", help="replies (default: beside the output)")
    parser.add_argument("--replay", action="store_true", help="ask nothing: take every reply from the store")
    parser.add_argument("--price-in", type=float, metavar="P", help="money for a million tokens of prompts")
    parser.add_argument("--price-out", type=float, metavar="P", help="and of replies")
    parser.add_argument("--max-cost", type=float, metavar="M", help="never spend more in one command")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time (%(default)s)")
    parser.add_argument(
        "--attempts", type=int, default=3, help="askings of a reply that cannot be read (%(default)s)"
    )


def add_anchor_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare what looks for drift."""
    parser.add_argument(
        "--anchor", type=Path, metavar="STORE", help="ask what an earlier store asked again, and show drift"
    )
    parser.add_argument(
        "--anchor-items", type=int, default=DEFAULT_ANCHOR_ITEMS, metavar="N", help="of them (%(default)s)"
    )


def add_swap_argument(parser: argparse._ActionsContainer) -> None:
    """Declare what looks for effects of the answers' order, where a judge compares two."""
    parser.add_argument(
        "--swap", action="store_true", help="judge again with the two answers the other way round"
    )


def judging_of(args: argparse.Namespace, *, swaps: bool = False) -> Judging:
    """Return how the options of `add_anchor_arguments` and --compat have a judge asked; raises UsageError."""
    return Judging(args.compat, swaps, args.anchor, args.anchor_items)


def has_judge(args: argparse.Namespace) -> bool:
    """Whether the options name a judge; a key in the environment alone spends no money."""
    return bool(args.judge_url or args.judge_path or args.judge_model or args.replay)


def open_judge(
    args: argparse.Namespace, *, default_model: str, store: Path, attempts: int | None = None
) -> Judge:
    """Return the judge that the options choose; raises LlavaErrors.

    default_model: whom the original asked. store: where replies are kept unless --store says.
    attempts: over --attempts.
    """
    from llava.eval.judge.cost import Prices, Spending
    from llava.eval.judge.judge import Judge
    from llava.eval.judge.replies import ReplyStore

    if (args.price_in is None) != (args.price_out is None):
        raise UsageError("--price-in and --price-out go together", remedy="Give both.")
    prices = None if args.price_in is None else Prices(args.price_in, args.price_out)
    spending = Spending(prices, cap=args.max_cost)
    if args.judge_path is not None and args.judge_url is not None:
        raise UsageError("--judge-path and --judge-url are two judges", remedy="Give one of them.")
    model = args.judge_model or (default_model if args.judge_path is None else Path(args.judge_path).name)
    replies = ReplyStore(args.store or store, is_read_only=args.replay)
    return Judge(
        model,
        None if args.replay else _backend(args),
        replies,
        spending=spending,
        concurrency=args.concurrency,
        attempts=args.attempts if attempts is None else attempts,
        extra=extra_of(args),
    )


def extra_of(args: argparse.Namespace) -> dict[str, object]:
    """Return the fields of --judge-extra; raises UsageError unless it is a JSON object."""
    if args.judge_extra is None:
        return {}
    try:
        found = json.loads(args.judge_extra)
    except json.JSONDecodeError as error:
        raise UsageError(f"--judge-extra is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError("--judge-extra is no JSON object", remedy='For example {"max_tokens": null}.')
    return found


def _backend(args: argparse.Namespace) -> Backend:
    from llava.eval.judge.backends import EndpointBackend, EngineBackend

    if args.judge_path is not None:
        import llava

        return EngineBackend(llava.load(args.judge_path, engine="auto"))
    from llava.engine.http_endpoint import HttpOptions

    key = os.environ.get(API_KEY_VARIABLE)
    url = args.judge_url or os.environ.get(URL_VARIABLE) or OPENAI_URL
    if url == OPENAI_URL and key is None:
        raise UsageError(
            "no judge is named: there is neither --judge-url nor --judge-path, and OpenAI needs a key",
            remedy=f"Give one of them, or the key in {API_KEY_VARIABLE}.",
        )
    options = HttpOptions(
        first_token_timeout_s=args.judge_timeout,
        token_timeout_s=args.judge_timeout,
        num_retries=5,
        retry_total_s=300.0,
        max_concurrency=args.concurrency,
    )
    return EndpointBackend(url, api_key=key, options=options)
