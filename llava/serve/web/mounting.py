"""Puts the page into an application: gradio at `/`, guarded (`guard.py`), without telemetry."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.serve.http.secret_file import state_folder

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llava.serve.web.backend import Backend
    from llava.serve.web.events import PageOptions


def mount_page(
    app: FastAPI,
    backend: Backend,
    options: PageOptions | None = None,
    *,
    log_folder: Path | None = None,
    moderate: bool = False,
) -> FastAPI:
    """Add the page at `/`; raises DependencyError without gradio, ConfigError for moderation without a key.

    log_folder: where dialogues, pictures and addresses are logged; None logs none of them.
    """
    folder = _private_folder()
    gr = import_gradio()
    from llava.serve.web.conversation_log import ConversationLog
    from llava.serve.web.display import CSS, HEAD
    from llava.serve.web.events import Events, PageOptions
    from llava.serve.web.guard import PageGuard
    from llava.serve.web.moderation import Moderation
    from llava.serve.web.page import Page
    from llava.serve.web.recording import Recorder

    log = None if log_folder is None else ConversationLog(log_folder)
    events = Events(
        backend,
        replace(options or PageOptions(), is_logged=log is not None),
        folder=folder / "thumbnails",
        recorder=Recorder((log_folder or state_folder()) / "votes.jsonl", log),
        moderation=Moderation() if moderate else None,
    )
    theme = gr.themes.Soft(
        font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    app.add_middleware(PageGuard)
    mounted: FastAPI = gr.mount_gradio_app(
        app, Page(events).blocks, path="/", theme=theme, css=CSS, head=HEAD, ssr_mode=False,
        show_error=False, max_file_size="32mb", footer_links=[], pwa=False, mcp_server=False,
    )  # fmt: skip
    return mounted


def import_gradio() -> Any:
    """Import gradio without telemetry; raises DependencyError where it is missing."""
    from llava.errors import DependencyError

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ImportError:
        raise DependencyError.of_extra("gradio", "serve", "the web page") from None
    return gradio


def _private_folder() -> Path:
    """Return a folder of this process for uploads, removed when it ends."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="llava-page-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder
