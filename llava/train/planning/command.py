"""`llava plan RECIPE`: predict the memory, hours and disk of a training run, and refuse what cannot fit.

The model and the data need not be on this machine. Options of the recipe are overridden as in `llava train`:
--SECTION.FIELD VALUE. Exit code 2 when the run does not fit; what does is proposed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from typing import Any

from llava.command import EXIT_OK, say
from llava.errors import UsageError
from llava.train.options import options
from llava.train.recipe import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: the recipe, the machine, and what is not in either."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "llava plan RECIPE [--machine CARD xN] [--samples N] [--json] [--SECTION.FIELD VALUE ...]"
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file")
    machine = parser.add_argument_group("the machine (8 A100s of 80 GiB unless stated)")
    machine.add_argument("--machine", nargs="+", metavar="WORD", help="card and number: a100-80g x8")
    machine.add_argument("--gpu", metavar="CARD", help="card alone, such as a100, or cpu")
    machine.add_argument("--gpus", type=int, metavar="N", help="devices, over all nodes")
    machine.add_argument("--memory", type=float, metavar="GIB", help="of one device")
    machine.add_argument(
        "--host-memory", type=float, metavar="GIB", help="of one host; else it is not checked"
    )
    machine.add_argument("--peak-tflops", type=float, metavar="X", help="16-bit peak of one device")
    machine.add_argument(
        "--mfu", type=float, metavar="SHARE", help="share of the peak that is reached (0.33)"
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="samples of an epoch, where the data is not here"
    )
    parser.add_argument("--tokens", type=float, metavar="N", help="text tokens of a sample")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="log more")
    for option in options().values():
        parser.add_argument(
            f"--{option.path}",
            nargs="?" if option.is_switch else None,
            const="true" if option.is_switch else None,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def run(args: argparse.Namespace) -> int:
    """Predict and print; raises UsageError, with what is needed and what there is, when it does not fit."""
    from llava.train.config import TrainConfig
    from llava.train.planning.lengths import find_lengths
    from llava.train.planning.machines import find_machine
    from llava.train.planning.page import describe
    from llava.train.planning.prediction import Prediction, predict
    from llava.train.planning.proposals import propose
    from llava.train.planning.shapes import find_shapes

    _check(args)
    # Of packages that only note what a model on the meta device cannot have.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    overrides = {path: text for path, text in vars(args).items() if path in options()}
    config = load_recipe(args.recipe, overrides)
    machine = find_machine(
        args.machine,
        gpus=args.gpus,
        memory_gib=args.memory,
        card=args.gpu,
        host_gib=args.host_memory,
        peak_tflops=args.peak_tflops,
    )
    shapes = find_shapes(config.model)
    lengths = find_lengths(config, shapes, num_samples=args.samples, text=args.tokens)

    def predict_one(run_config: TrainConfig) -> Prediction:
        return predict(run_config, machine, shapes, lengths, peak_share=args.mfu)

    prediction = predict_one(config)
    proposals = propose(config, machine, predict_one) if prediction.shortage else []
    if args.json:
        say(json.dumps(as_json(prediction, proposals), indent=2))
    else:
        say(describe(prediction, proposals), end="")
    if prediction.shortage:
        remedy = (
            f"First of {len(proposals)} ways: {proposals[0].flags}." if proposals else "Nothing here helps."
        )
        raise UsageError(f"the run does not fit: {prediction.shortage}", remedy=remedy)
    return EXIT_OK


def _check(args: argparse.Namespace) -> None:
    for name in ("samples", "tokens", "memory", "host_memory", "peak_tflops", "mfu", "gpus"):
        value = vars(args)[name]
        if value is not None and value <= 0:
            raise UsageError(f"--{name.replace('_', '-')} is {value}", remedy="Give a number above 0.")
    if args.mfu is not None and args.mfu > 1:
        raise UsageError(f"--mfu is {args.mfu}", remedy="Give a share, at most 1.")


def as_json(prediction: Any, proposals: Any) -> dict[str, Any]:
    """Return a prediction as it is printed by --json; bytes, seconds and FLOPs as they are."""
    hours = prediction.hours
    return {
        "fits": not prediction.shortage,
        "shortage": prediction.shortage or None,
        "machine": dataclasses.asdict(prediction.machine),
        "engine": prediction.layout.name,
        "parameters": dataclasses.asdict(prediction.counts) | {"total": prediction.counts.total},
        "lengths": dataclasses.asdict(prediction.lengths),
        "largest_pass": dataclasses.asdict(prediction.batch),
        "passes_per_step": prediction.num_passes,
        "memory": dataclasses.asdict(prediction.memory),
        "time": dataclasses.asdict(hours) | {"hours": hours.hours, "mfu": hours.mfu},
        "disk": dataclasses.asdict(prediction.disk) | {"total": prediction.disk.total},
        "proposals": [
            {
                "flags": proposal.flags,
                "reason": proposal.reason,
                "peak": proposal.prediction.memory.peak,
                "hours": proposal.prediction.hours.hours,
            }
            for proposal in proposals
        ],
    }
