"""Little servers that do wrong what the selftest looks for: each of its checks must fail on one of them.

They answer honest questions, or there would be nothing to test.
"""

from __future__ import annotations

import json
import socketserver
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "the-key-of-this-test"
TEXT = "Two objects."


class Weak(BaseHTTPRequestHandler):
    """Answers a question whoever asks, and believes what it is told."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.send_json(200, {"data": [{"id": "weak"}]})
        else:
            self.send_json(404, {"detail": "no"})

    def do_POST(self) -> None:
        self.answer(json.loads(self.body()))

    def do_OPTIONS(self) -> None:
        self.send_json(200, {})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, body: dict[str, Any]) -> None:
        """Answer a chat request."""
        self.send_json(200, self.completion(body))

    def completion(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{"message": {"content": TEXT}}], "usage": {"prompt_tokens": 5}}

    def send_json(self, status: int, value: object) -> None:
        self.send(status, "application/json", json.dumps(value).encode())

    def send(self, status: int, kind: str, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, text in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)


class WeakAccess(Weak):
    """Calls whatever it is told, compares keys letter by letter, and lets every page read its answers."""

    def do_POST(self) -> None:
        body = json.loads(self.body() or b"{}") if self.path != "/v1/chat/completions" else {}
        if self.path == "/register_worker":
            self.fetch(body["worker_name"])
            self.send_json(200, None)
        elif self.path == "/list_models":
            self.send_json(200, {"models": ["weak"]})
        elif self.path == "/worker_generate_stream":
            for address in body["images"]:
                self.fetch(address)
            self.send(200, "application/octet-stream", json.dumps({"text": TEXT, "error_code": 0}).encode())
        elif self.path == "/v1/chat/completions":
            super().do_POST()
        else:
            self.send_json(200, {})

    def do_GET(self) -> None:
        if self.path == "/v1/models" and not self.has_key():
            self.send_json(401, {})
        elif self.path in ("/v1/models/x", "/health", "/ready"):
            self.send_json(200, {})
        else:
            super().do_GET()

    def has_key(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        for ours, theirs in zip(KEY, given, strict=False):
            if ours != theirs:
                return False
            time.sleep(0.0003)
        return given == KEY

    def answer(self, body: dict[str, Any]) -> None:
        for url in urls_of(body):
            self.fetch(url)
        super().answer(body)

    def fetch(self, url: str) -> None:
        with suppress(Exception):
            urllib.request.urlopen(url, timeout=0.3).read()

    def send(self, status: int, kind: str, data: bytes, **headers: str) -> None:
        super().send(status, kind, data, **{"Access-Control-Allow-Origin": "*"}, **headers)


class WeakWire(Weak):
    """Waits for ever, reads everything, and answers one after the other."""

    lock = threading.Lock()
    free_at = 0.0

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return super().body()
        data = b""
        while (size := int(self.rfile.readline(), 16)) > 0:
            data = self.rfile.read(size)
            self.rfile.readline()
        return data

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.send(200, "text/plain", b"x" * 1000)
        else:
            super().do_GET()

    def do_POST(self) -> None:
        data = self.body()
        if data.startswith(b"{"):
            with self.lock:
                WeakWire.free_at = max(self.free_at, time.monotonic()) + 0.03
                mine = self.free_at
            time.sleep(mine - time.monotonic())
        self.send_json(200, self.completion({}))


class WeakPictures(Weak):
    """Takes anything for a picture, knows pictures by their pixels alone, and hands out what it got."""

    uploads: dict[str, bytes] = {}  # noqa: RUF012
    known: set[int] = set()  # noqa: RUF012

    def answer(self, body: dict[str, Any]) -> None:
        import base64
        import io

        from PIL import Image

        for url in urls_of(body):
            try:
                data = base64.b64decode(str(url).partition(",")[2] + "==")
                pixels = Image.open(io.BytesIO(data)).size
                self.send_json(200, {**self.completion(body), **self.remembered(pixels[0] * pixels[1])})
            except Exception:
                if "!!!!" in str(url) or len(str(url)) > 1000:
                    self.send_json(200, self.completion(body))
                else:
                    self.send_json(500, {"error": traceback.format_exc()})
            return
        self.send_json(
            400, {"error": {"message": "wrong at /srv/models/weak.bin, <Weak object at 0x7f00aa10>"}}
        )

    def remembered(self, num_pixels: int) -> dict[str, Any]:
        is_known = num_pixels in self.known
        self.known.add(num_pixels)
        scores = [{"logprob": -0.5, "top_logprobs": []}]
        return {
            "choices": [{"message": {"content": TEXT}, "logprobs": {"content": scores}}],
            "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 9 * is_known}},
        }

    def do_POST(self) -> None:
        if self.path != "/gradio_api/upload":
            super().do_POST()
            return
        head, _, data = self.body().partition(b"\r\n\r\n")
        name = head.partition(b'filename="')[2].partition(b'"')[0].decode()
        self.uploads[name] = data
        self.send_json(200, [name])

    def do_GET(self) -> None:
        name = self.path.removeprefix("/gradio_api/file=")
        if name in self.uploads:
            self.send(200, "text/html", self.uploads[name])
        elif self.path.endswith("/etc/passwd"):
            self.send(200, "text/plain", b"root:x:0:0")
        else:
            super().do_GET()


class WeakText(Weak):
    """Takes words for control tokens, believes numbers, and lets a model decide what is done."""

    def do_GET(self) -> None:
        if self.path == "/":
            page = b"<html><script src='https://cdn.example/x.js'></script></html>"
            self.send(200, "text/html", page)
        else:
            super().do_GET()

    def do_POST(self) -> None:
        if self.path == "/list_models":
            self.body()
            self.send_json(200, {"models": ["weak"]})
        elif self.path == "/worker_generate_stream":
            self.body()
            self.send(200, "application/octet-stream", json.dumps({"text": TEXT, "error_code": 0}).encode())
        else:
            super().do_POST()

    def answer(self, body: dict[str, Any]) -> None:
        text = json.dumps(body)
        for address in {part.split("/b")[0] for part in text.split("(") if part.startswith("http://127")}:
            with suppress(Exception):
                urllib.request.urlopen(address, timeout=0.3).read()
        if "2 places" in text or text.count("data:") > 20 or "<image> and" in text:
            self.send_json(500, {})
        elif "script" in text:
            self.send(200, "text/html", json.dumps(self.completion(body)).encode())
        else:
            self.send_json(200, self.completion(body))

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(body.get("messages"))
        made = super().completion(body)
        made["usage"]["prompt_tokens"] += text.count("<image>") * 576 + text.count("</s>")
        if "picture says" in text:
            made["choices"][0]["message"]["tool_calls"] = [{"function": {"name": "shell"}}]
        return made


def urls_of(body: dict[str, Any]) -> list[Any]:
    """Return the addresses of pictures in a chat request."""
    return [
        part["image_url"]["url"] if isinstance(part["image_url"], dict) else part["image_url"]
        for message in body["messages"]
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if part.get("type") == "image_url"
    ]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def running(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    """Yield the address of a weak server."""
    with _Server(("127.0.0.1", 0), handler) as server:
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
