"""`python -m llava.serve.test_message`: ask a worker one thing over the network, as the original does.

Prints the models, the worker's address, the prompt with its separators as line breaks, and the answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava.command import EXIT_OK, EXIT_WITH_FAILURES, OptionParser, note, say
from llava.command import run as run_command
from llava.serve.answering import printable
from llava.serve.network_options import add_token_argument, require_serving_packages
from llava.serve.protocol import GenerateRequest
from llava.templates import ChatTemplate, Turn, get_template

if TYPE_CHECKING:
    from llava.serve.client import ServingClient

__test__ = False
"""Its name begins like a test's."""
DEFAULT_CONTROLLER = "http://localhost:21001"
_TEMPERATURE = 0.7
_DEFAULT_TEMPLATE = "v0"
"""The original's, for workers that do not say theirs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 1 when there is no worker to ask."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _ask(_parser().parse_all(words)))


def _parser() -> OptionParser:
    parser = OptionParser(prog="python -m llava.serve.test_message", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--controller-address",
        "--controller",
        default=DEFAULT_CONTROLLER,
        metavar="ADDRESS",
        help="(%(default)s)",
    )
    parser.add_argument(
        "--worker-address", "--worker", metavar="ADDRESS", help="ask this worker, and no controller"
    )
    parser.add_argument("--model-name", help="(default: the first that the controller lists)")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="(%(default)s)")
    parser.add_argument(
        "--message", default="Tell me a story with more than 1000 words.", help="(%(default)s)"
    )
    add_token_argument(parser)
    return parser


def _ask(args: argparse.Namespace) -> int:
    require_serving_packages()
    from llava.serve.client import ServingClient
    from llava.serve.http.secret_file import shared_token

    address = args.worker_address or args.controller_address
    with ServingClient(address, token=shared_token(args.token_file)) as client:
        model, worker, template = _worker(client, args)
        if not worker:
            note(f"no worker has the model {model}" if model else "the controller knows no worker")
            return EXIT_WITH_FAILURES
        prompt = _prompt(template, args.message)
        request = GenerateRequest(
            prompt=prompt,
            model=model,
            temperature=_TEMPERATURE,
            max_new_tokens=args.max_new_tokens,
            stop=template.stop_strings[:1],
        )
        # A separator that is a space would put every word on a line of its own.
        say(prompt.replace(template.sep, "\n") if template.sep.strip() else prompt, end="")
        for message in client.stream(request, address=worker):
            say(printable(message.delta or ""), end="")
        say()
    return EXIT_OK


def _worker(client: ServingClient, args: argparse.Namespace) -> tuple[str, str, ChatTemplate]:
    """Return model, worker and prompt template; the worker is "" where there is none."""
    if args.worker_address:
        status = client.status()
        name = args.model_name or status.model_names[0]
        return name, args.worker_address, _template(status.templates.get(name))
    client.refresh()
    models = client.models()
    say(f"Models: {models}")
    name = args.model_name or (models[0] if models else "")
    worker = client.worker_address(name) if name else ""
    say(f"worker_addr: {worker}")
    return name, worker, _template(client.templates().get(name))


def _template(name: str | None) -> ChatTemplate:
    return get_template(name or _DEFAULT_TEMPLATE)


def _prompt(template: ChatTemplate, message: str) -> str:
    spans = template.render([Turn("user", (message,))], add_generation_prompt=True)
    return "".join(span.text for span in spans)


if __name__ == "__main__":
    sys.exit(main())
