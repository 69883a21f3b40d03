"""Attacks by pictures (A11-A17): each is refused with a code, or read as what it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from PIL import Image

from llava.serve.selftest import corpus
from llava.serve.selftest.outcome import Trial, refused, stood
from llava.serve.selftest.service import Reply
from llava.serve.selftest.target import COMPLETIONS, Target, a_picture, data_url, text_of

_WORDS: Final = "What is this?"
_ACTIVE: Final = ("html", "xml", "svg", "javascript", "ecmascript", "pdf")
_FILES: Final = (
    "/file=/etc/passwd", "/gradio_api/file=/etc/passwd", "/gradio_api/file=http://127.0.0.1:1/x",
    "/gradio_api/proxy=http://127.0.0.1:1/x", "/proxy=http://127.0.0.1:1/x", "/static/../../../../etc/passwd",
    "/assets/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/gradio_api/file/etc/passwd", "//etc/passwd", "/gradio_api/stream/..%2f..%2fetc%2fpasswd", "/etc/passwd",
)  # fmt: skip


def decompression_bombs(target: Target) -> Iterator[Trial]:
    """A11: a picture far larger than its file is refused before it is decoded."""
    for what, data in corpus.too_large().items():
        yield refused(f"{what} ({len(data) / 1000:.0f} kB)", target.ask(_WORDS, picture=data))


def odd_shapes(target: Target) -> Iterator[Trial]:
    """A12: lines and dots are answered or refused, and pictures without a pixel refused."""
    for what, (data, has_pixels) in corpus.odd_shapes().items():
        reply = target.ask(_WORDS, picture=data)
        yield stood(what, reply) if has_pixels else refused(what, reply)


def broken_pictures(target: Target) -> Iterator[Trial]:
    """A13: what is no whole picture is refused, what hides a bomb harmless, and rare kinds are read."""
    for what, data in corpus.broken().items():
        yield refused(what, target.ask(_WORDS, picture=data))
    for what, data in corpus.bombs().items():
        yield stood(what, target.ask(_WORDS, picture=data))
    for what, data in corpus.unusual().items():
        url = data_url(data, "image/jpeg") if what == "PNG called JPEG" else data_url(data)
        reply = target.ask(_WORDS, picture=url)
        yield Trial(what, reply.seen, reply.status == 200)


def polyglots(target: Target) -> Iterator[Trial]:
    """A14: nothing that was sent comes back as a page, and no route hands out files."""
    for what, data in corpus.polyglots().items():
        reply = target.ask(_WORDS, picture=data)
        yield stood(what, reply)
        yield _is_inert(what, reply)
    for path in _FILES:
        # As bytes: a client would tidy the path.
        reply, _ = target.api.exchange(target.api.head("GET", path, "Connection: close") + b"\r\n")
        is_file = b"root:" in reply.body
        yield Trial(path, "a file of the machine" if is_file else str(reply.status), reply.is_refused)
    uploads = {"x.html": b"<script>alert(1)</script>", "x.svg": corpus.broken()["SVG"], **{
        f"{number}.png": data for number, data in enumerate(corpus.polyglots().values())
    }}  # fmt: skip
    for name, data in uploads.items():
        yield from _uploaded_and_fetched(target, name, data)


def equal_pixels_of_another_shape(target: Target) -> Iterator[Trial]:
    """A15: the same bytes as another shape are another picture, also to what remembers pictures."""
    first = corpus.noise(30, 100)
    second = Image.frombytes("RGB", (100, 30), first.tobytes())
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 5, "max_tokens": 4}
    replies = [target.ask(_WORDS, picture=corpus.saved(image), **fields) for image in (first, first, second)]
    for reply in replies:
        if reply.status != 200:
            yield Trial("30 x 100 and 100 x 30", reply.seen, False)
            return
    _, again, other = (_known_tokens(reply) for reply in replies)
    if again is not None and other is not None and again > 0:
        yield Trial(
            "tokens that are remembered",
            "fewer of the other shape" if other < again else f"{other} of {again}, as of the same picture",
            other < again,
        )
    first_scores, second_scores = _scores(replies[0]), _scores(replies[2])
    if first_scores:
        differ = first_scores != second_scores
        seen = "differ" if differ else "are those of the other picture"
        yield Trial("scores of 30 x 100 and 100 x 30", seen, differ)


def broken_base64(target: Target) -> Iterator[Trial]:
    """A16: what is no base64, or says it is no picture, is refused; small faults of spelling may pass."""
    url = data_url(a_picture())
    data = url.partition(",")[2]
    no_pictures = {
        "garbage": "data:image/png;base64,!!!!****",
        "no base64 at all": "data:image/png;base64,",
        "half a group": "data:image/png;base64,A",
        "not base64 but text": "data:image/png,hello",
        "declared as HTML": f"data:text/html;base64,{data}",
        "declared as a script": f"data:application/javascript;base64,{data}",
        "declared as SVG, and SVG": data_url(corpus.broken()["SVG"], "image/svg+xml"),
        "no comma": "data:image/png;base64" + data,
        "an address in it": data_url(b"http://127.0.0.1/"),
        "a NUL": url[:60] + "\0" + url[60:],
        "no ASCII": url[:60] + "\u0416" + url[60:],
        "10^6 parameters": "data:image/png" + ";x" * 1_000_000 + ",x",
        "48 MB": "data:image/png;base64," + "A" * 48_000_000,
        "a number": "5",
        "nothing": "",
    }
    for what, text in no_pictures.items():
        yield refused(what, target.ask(_WORDS, picture=text))
    misspelt = {
        "no padding": url.rstrip("="),
        "too much padding": url + "====",
        "line breaks": re.sub(r"(.{60})", r"\1\n", data).join(["data:image/png;base64,", ""]),
        "declared as JPEG": f"data:image/jpeg;base64,{data}",
        "in capitals": f"DATA:IMAGE/PNG;BASE64,{data}",
    }
    for what, text in misspelt.items():
        yield stood(what, target.ask(_WORDS, picture=text))
    for what, picture in {"an object": {"url": {"url": url}}, "a list": [url], "null": None}.items():
        content = [{"type": "image_url", "image_url": picture}]
        yield refused(what, target.ask(content))


def words_of_errors(target: Target) -> Iterator[Trial]:
    """A17: an error has code, words and request id, and holds no path, address or traceback.

    Every other attack's errors are looked at too.
    """
    bad = {
        "no picture": target.ask(_WORDS, picture=b"x" * 100),
        "a broken picture": target.ask(_WORDS, picture=corpus.broken()["truncated PNG"]),
        "a TIFF that leads to itself": target.ask(
            _WORDS, picture=corpus.broken()["TIFF whose directory leads to itself"]
        ),
        "no model": target.api.post(COMPLETIONS, {"model": "../../etc/passwd", "messages": [_message()]}),
        "no messages": target.api.post(COMPLETIONS, {"messages": []}),
        "a wrong type": target.api.post(COMPLETIONS, {"messages": {"x": object.__name__}}),
        "no JSON": target.api.send(
            "POST", COMPLETIONS, content=b"{", headers={"Content-Type": "application/json"}
        ),
        "no route": target.api.send("GET", "/v1/no-such-route"),
        "no method": target.api.send("DELETE", COMPLETIONS),
    }
    for what, reply in bad.items():
        has_all = all(isinstance(reply.error.get(name), str) for name in ("message", "code", "request_id"))
        yield Trial(what, reply.seen if has_all else f"{reply.seen} without a code", has_all)
    if target.controller is not None:
        frames = {
            "no model": target.generate("x", model="/etc"),
            "no number": target.generate("x", top_p="x"),
        }
        for what, frame in frames.items():
            has_code = bool(frame.get("code"))
            yield Trial(f"{what} at the controller", str(frame.get("code", "no code")), has_code)


def _message() -> dict[str, str]:
    return {"role": "user", "content": "Hello"}


def _is_inert(what: str, reply: Reply) -> Trial:
    """Say whether no browser would run an answer."""
    kind = reply.headers.get("content-type", "none").partition(";")[0]
    is_closed = reply.headers.get("x-content-type-options", "") == "nosniff"
    is_ok = is_closed and kind in ("application/json", "text/event-stream")
    return Trial(f"the kind of the answer to {what}", kind if is_closed else f"{kind}, may be sniffed", is_ok)


def _uploaded_and_fetched(target: Target, name: str, data: bytes) -> Iterator[Trial]:
    """Give a file to the page, if there is one, and fetch it where it then lies."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode()
        + b'"\r\nContent-Type: text/html\r\n\r\n' + data + b"\r\n--b--\r\n"
    )  # fmt: skip
    head = {"Content-Type": "multipart/form-data; boundary=b"}
    reply = target.api.send("POST", "/gradio_api/upload", content=body, headers=head)
    paths = reply.json if reply.status == 200 and isinstance(reply.json, list) else []
    if not paths:
        yield Trial(f"{name} as an upload", reply.seen, reply.is_refused)
    for path in paths:
        fetched = target.api.send("GET", f"/gradio_api/file={path}")
        kind = fetched.headers.get("content-type", "").lower()
        is_active = any(word in kind for word in _ACTIVE)
        is_shown = not fetched.headers.get("content-disposition", "").startswith("attachment")
        is_sniffed = fetched.headers.get("x-content-type-options", "") != "nosniff"
        is_ok = fetched.is_refused or not (is_sniffed or (is_active and is_shown))
        seen = f"{fetched.status}" if is_ok else f"{fetched.status} as {kind}, to be shown or sniffed"
        yield Trial(f"{name} after its upload", seen, is_ok)


def _known_tokens(reply: Reply) -> int | None:
    try:
        return int(reply.json["usage"]["prompt_tokens_details"]["cached_tokens"])
    except (TypeError, LookupError, ValueError):
        return None


def _scores(reply: Reply) -> Any:
    try:
        return [
            [token["logprob"], [other["logprob"] for other in token["top_logprobs"]]]
            for token in reply.json["choices"][0]["logprobs"]["content"]
        ]
    except (TypeError, LookupError):
        return [text_of(reply)]
