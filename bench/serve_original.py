"""A stand-in for the original's model worker, by which bench.serve is measured; run as a process of its own.

    python -m bench.serve_original --model-path FOLDER --port PORT

It computes as that worker does: an asyncio semaphore of five; for each request its pictures decoded from
base64 and a thread that calls transformers' `generate` with a TextIteratorStreamer; no batch, nothing
remembered; with every piece of text a frame that holds the prompt and all text so far, and a NUL. Only what
would be slower here is left out: the weights are float32 (float16 is slower on a CPU), and no heartbeats
stall the streams.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from PIL import Image
from starlette.background import BackgroundTask
from transformers import TextIteratorStreamer

from bench.engine_peers import ORIGINAL_CONCURRENCY
from llava.engine.frontend import Frontend
from llava.model.builder import LoadedModel, LoadOptions, load_model

TIMEOUT_S = 120.0
"""Between two pieces of text; 15 there, which this machine might miss."""


class OriginalWorker:
    """Answers each request by a `generate` of its own."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Take a model that nobody else uses."""
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        frontend = Frontend.of_loaded(loaded)
        self._processor, self._context_length = frontend.processor, frontend.context_length

    def stream(self, params: dict[str, Any]) -> Iterator[bytes]:
        """Yield the frames of an answer."""
        prompt, stop = params["prompt"], params["stop"]
        images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in params.get("images") or []]
        batch = self._processor(prompt, images)
        temperature = float(params.get("temperature", 1.0))
        room = self._context_length - batch["input_ids"].shape[1]
        streamer = TextIteratorStreamer(
            self._tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=TIMEOUT_S
        )
        sampling = {"temperature": temperature, "top_p": float(params.get("top_p", 1.0))}
        thread = Thread(
            target=self._model.generate,
            kwargs={
                **batch,
                "do_sample": temperature > 0.001,
                **(sampling if temperature > 0.001 else {}),
                "max_new_tokens": min(int(params.get("max_new_tokens", 256)), 1024, room),
                "streamer": streamer,
                "use_cache": True,
            },
        )
        thread.start()
        generated = prompt
        for piece in streamer:
            generated += piece
            if generated.endswith(stop):
                generated = generated[: -len(stop)]
            yield json.dumps({"text": generated, "error_code": 0}).encode() + b"\0"
        thread.join()


def create_app(worker: OriginalWorker, name: str) -> FastAPI:
    """Return the two routes that clients and controllers use."""
    semaphore = asyncio.Semaphore(ORIGINAL_CONCURRENCY)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        print("ready", flush=True)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/worker_get_status")
    async def get_status(_: Request) -> dict[str, Any]:
        return {"model_names": [name], "speed": 1, "queue_length": 0}

    @app.post("/worker_generate_stream")
    async def generate_stream(request: Request) -> StreamingResponse:
        params = await request.json()
        await semaphore.acquire()

        async def release() -> None:
            semaphore.release()

        return StreamingResponse(worker.stream(params), background=BackgroundTask(release))

    return app


def main() -> None:
    """Read the command line and serve until a signal comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = load_model(args.model_path, LoadOptions(device="cpu", dtype="float32"))
    app = create_app(OriginalWorker(loaded), "original")
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
