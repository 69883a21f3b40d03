"""Pictures that attack: each is refused with a code, or read as what it shows; nothing else breaks."""

from __future__ import annotations

import base64
import io
import struct
import threading
import zlib
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from llava.engine.request import Request
from llava.serve.application import ServeOptions
from llava.serve.openai.messages import PromptLimits
from llava.serve.openai.pictures import PictureLimits, PictureMemory, RequestPictures
from tests.serve.engines import EchoEngine
from tests.serve.servers import ask, error_of, serving, wait_until


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(EchoEngine()) as running:
        yield running


def saved(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, format_name, **options)
    return written.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_size(width: int, height: int, *extra: bytes) -> bytes:
    """Return a PNG that says how large it is, and holds next to nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + chunk(b"IEND", b"")


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def send(client: httpx.Client, url: str) -> httpx.Response:
    return ask(client, [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": url}}])


PLAIN = Image.effect_noise((64, 48), 80).convert("RGB")
GIF = saved(
    Image.new("L", (4, 4)),
    "GIF",
    save_all=True,
    append_images=[Image.new("L", (4, 4), n % 251) for n in range(1, 1200)],
)

REFUSED = {
    "bomb": (png_of_size(30_000, 30_000), "image-limit"),
    "no height": (png_of_size(10, 0), "image"),
    "a line": (png_of_size(1, 60_000), "image-limit"),
    "a ribbon": (png_of_size(52_800, 44), "image-limit"),
    "truncated PNG": (saved(PLAIN)[:-300], "image"),
    "truncated JPEG": (saved(PLAIN, "JPEG")[:200], "image"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "image"),
    "FITS": (b"SIMPLE  =                    T" + b" " * 2850, "image"),
    "HTML": (b"<html><script>alert(1)</script></html>", "image"),
    "10^3 frames": (GIF, "image-limit"),
    "text bomb": (png_of_size(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 80_000_000))), "image"),
    "nothing": (b"", "image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_that_is_none_or_too_much_is_refused(client: httpx.Client, name: str) -> None:
    data, code = REFUSED[name]
    response = send(client, uri(data))
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] in (code, "image", "image-limit") if name == "text bomb" else error["code"] == code
    assert " at 0x" not in error["message"]
    assert "/" not in error["message"].replace("image/", "")
    assert ask(client).status_code == 200


READ = {
    "one pixel": saved(Image.new("RGB", (1, 1))),
    "CMYK": saved(PLAIN.convert("CMYK"), "JPEG"),
    "16 bit": saved(Image.new("I;16", (64, 48), 40_000)),
    "palette with alpha": saved(PLAIN.convert("P"), transparency=3),
    "grey with alpha": saved(PLAIN.convert("LA")),
    "pages": saved(PLAIN, "TIFF", save_all=True, append_images=[PLAIN]),
    "JPEG with HTML behind": saved(PLAIN, "JPEG") + b"<html><script>alert(1)</script></html>",
    "damaged EXIF": saved(PLAIN, "JPEG", exif=b"Exif\0\0" + b"\xff" * 500),
    "ICC profile": saved(PLAIN, icc_profile=b"\0" * 100_000),
}


@pytest.mark.parametrize("name", READ)
def test_an_odd_picture_is_read_as_what_it_shows(client: httpx.Client, name: str) -> None:
    response = send(client, uri(READ[name]))
    assert response.status_code == 200, response.text
    width = 1 if name == "one pixel" else 64
    assert f"pictures: [{width}]" in response.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("url", "is_read"),
    [
        (uri(saved(PLAIN), "image/jpeg"), True),
        (uri(saved(PLAIN), ""), True),
        (uri(saved(PLAIN), "application/octet-stream"), True),
        (uri(saved(PLAIN)).rstrip("="), True),
        (uri(saved(PLAIN), "text/html"), False),
        (uri(saved(PLAIN), "application/json"), False),
        ("data:image/png;base64,!!!!", False),
        ("data:image/png;base64,", False),
        ("data:image/png,abc", False),
        ("data:", False),
    ],
    ids=str,
)
def test_data_uris(client: httpx.Client, url: str, is_read: bool) -> None:
    response = send(client, url)
    assert response.status_code == (200 if is_read else 400)
    if not is_read:
        assert error_of(response)["code"] == "image"


def test_equal_pixels_of_another_shape_are_another_picture() -> None:
    engine = EchoEngine()
    row = bytes(range(240)) * 3
    with serving(engine) as client:
        for size in ((24, 10), (10, 24)):
            assert send(client, uri(saved(Image.frombytes("RGB", size, row)))).status_code == 200
    sizes = [image.size for request in engine.requests for image in pictures_of(request)]
    assert sizes == [(24, 10), (10, 24)]


def pictures_of(request: Request) -> list[Image.Image]:
    return [image for image in request.images if isinstance(image, Image.Image)]


def test_large_pictures_of_all_requests_together_are_bounded() -> None:
    engine = EchoEngine()
    engine.gate.clear()
    limits = PictureLimits(max_held_pixels=PLAIN.width * PLAIN.height * 2)
    found: list[int] = []
    with serving(engine, ServeOptions(prompt=PromptLimits(limits))) as client:
        threads = [
            threading.Thread(target=lambda: found.append(send(client, uri(saved(PLAIN))).status_code))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(engine.requests) == 2)
        response = send(client, uri(saved(PLAIN)))
        assert (response.status_code, error_of(response)["code"]) == (429, "server-busy")
        assert "pictures" in error_of(response)["message"]
        engine.gate.set()
        for thread in threads:
            thread.join()
        assert found == [200, 200]
        assert send(client, uri(saved(PLAIN))).status_code == 200


def test_pictures_of_an_answer_that_was_given_up_are_not_counted() -> None:
    memory = PictureMemory(PictureLimits())
    pictures = RequestPictures(memory, [uri(saved(PLAIN))])
    pictures.load()
    assert memory.num_pixels == PLAIN.width * PLAIN.height
    pictures.release()
    pictures.release()
    assert memory.num_pixels == 0
    pictures.load()
    assert memory.num_pixels == 0


def test_a_file_of_the_server_is_no_picture(client: httpx.Client) -> None:
    for url in ("file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "C:\\x.png", "x" * 40):
        response = send(client, url)
        assert (response.status_code, error_of(response)["code"]) == (400, "request")
