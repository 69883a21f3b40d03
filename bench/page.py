"""How long the web page takes until one can type into it: a warm `llava serve` on this machine, in Chromium.

    python -m bench.page [--loads 10]

Each load has a browser profile of its own, so that nothing comes from its cache. Interactive: the model list
is filled and the box takes text. Also counts the requests of a load, and those that went to another host.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
READY = "document.querySelector('#model input')?.value && !document.querySelector('#box textarea').disabled"


class Load(NamedTuple):
    """One load of the page."""

    interactive_s: float
    num_requests: int
    num_elsewhere: int
    """Requests to another host."""


@contextmanager
def served() -> Iterator[tuple[str, float]]:
    """Yield the address of `llava serve` with the embedded model, and after how many seconds it was ready."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "llava.cli", "serve", "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert server.stdout is not None
        try:
            found = re.search(r"http://\S+", server.stdout.readline())
            if found is None:
                log.seek(0)
                raise SystemExit(f"the server did not start: {log.read()}")
            yield found[0], time.perf_counter() - begin
        finally:
            server.terminate()
            server.wait(60)


def load(browser: Any, url: str) -> Load:
    """Load the page in a new profile."""
    context = browser.new_context()
    page = context.new_page()
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    begin = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_function(READY)
    interactive_s = time.perf_counter() - begin
    context.close()
    elsewhere = [found for found in urls if not found.startswith((url, "data:", "blob:"))]
    return Load(interactive_s, len(urls), len(elsewhere))


def main() -> None:
    """Print one row a load, and the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=10)
    args = parser.parse_args()
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        raise SystemExit("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with served() as (url, ready_s), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        load(browser, url)  # the server's first answer reads gradio's files
        loads = [load(browser, url) for _ in range(args.loads)]
        browser.close()
    print(f"server ready after {ready_s:.1f} s")
    for item in loads:
        print(
            f"interactive {item.interactive_s:5.2f} s  {item.num_requests} requests, "
            f"{item.num_elsewhere} elsewhere"
        )
    times = [item.interactive_s for item in loads]
    print(f"median {statistics.median(times):.2f} s, slowest {max(times):.2f} s")


if __name__ == "__main__":
    main()
