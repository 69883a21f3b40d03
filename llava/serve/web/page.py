"""The web page: what is on it, and which event does what. gradio 6; nothing is fetched from elsewhere.

The dialogue lives in the browser's storage and travels with every event. Uploads and thumbnails lie in a
private folder of this process, whose files go after an hour, and all of it when the server ends.
"""

from __future__ import annotations

from typing import Final

import gradio as gr

from llava.serve.web.display import KEPT_S, MAX_UPLOADS, examples
from llava.serve.web.events import Events
from llava.serve.web.pictures import MODES

TITLE: Final = "LLaVA"
ABOUT: Final = "Vision-language chat. Answers can be wrong. "
KEPT: Final = "Your browser keeps the dialogue, this server does not."
LOGGED: Final = "**This server logs dialogues, pictures and addresses.**"
TERMS: Final = (
    "By using this service you agree that it is a research preview with limited safety measures, which may "
    "produce offensive content and must not be used for illegal, harmful or violent purposes."
)
ANSWER_VOTES: Final = (("👍 Upvote", "up"), ("👎 Downvote", "down"), ("⚠️ Flag", "flag"))
PAIR_VOTES: Final = (("◀ Left", "left"), ("Right ▶", "right"), ("Tie", "tie"), ("Both bad", "both_bad"))
STORAGE_SECRET: Final = "llava"
"""The same for every start of a server, so that browsers can read what they kept before. It hides nothing: it
is in the page, as one of gradio's drawing would be."""
_DOWNLOAD: Final = """(kept) => {
  const dialogue = kept?.panes?.[0] ?? {format: "llava-dialogue", version: 1, turns: []};
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(dialogue, null, 2)], {type: "application/json"}));
  link.download = "dialogue.json";
  link.click();
  URL.revokeObjectURL(link.href);
}"""
"""In the browser, which has the dialogue; the server has not."""


class Page:
    """The components, laid out; `Events` fills them."""

    def __init__(self, events: Events) -> None:
        self.events = events
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, KEPT_S)) as blocks:
            self.kept = gr.BrowserState(None, storage_key="llava-dialogue", secret=STORAGE_SECRET)
            self.round = gr.State(None)
            self._blocks = blocks
            self._lay_out()
            self._connect()
        self.blocks = blocks

    def _lay_out(self) -> None:
        options = self.events.options
        told = LOGGED if options.is_logged else KEPT
        if options.is_embedded and options.is_logged:
            gr.Markdown(told, elem_id="title")
        if not options.is_embedded:
            gr.Markdown(f"# {TITLE}\n{ABOUT}{told}", elem_id="title")
        with gr.Row(equal_height=True):
            self.model = gr.Dropdown([], label="Model", scale=3, elem_id="model", allow_custom_value=True)
            self.other = gr.Dropdown(
                [], label="Beside it", scale=3, elem_id="other", visible=False, allow_custom_value=True
            )
            with gr.Column(scale=2, min_width=160):
                self.compare = gr.Checkbox(label="Two models side by side", elem_id="compare")
                self.blind = gr.Checkbox(
                    label="Hide their names until the vote", elem_id="blind", visible=False
                )
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self._lay_out_dialogue()
            with gr.Sidebar(position="right", open=False, elem_id="side", label="Settings"):
                self._lay_out_settings()
        if not options.is_embedded:
            gr.Markdown(TERMS, elem_classes=["stages"])

    def _lay_out_dialogue(self) -> None:
        with gr.Row():
            self.chats = [
                gr.Chatbot(
                    height="52vh",
                    label=label,
                    elem_id=name,
                    elem_classes=["llava-chat"],
                    render_markdown=False,
                    sanitize_html=True,
                    allow_tags=False,
                    editable="user" if number == 0 else None,
                    buttons=["copy"],
                    visible=number == 0,
                    placeholder="Add a picture and ask about it.",
                    group_consecutive_messages=False,
                )
                for number, (label, name) in enumerate((("Dialogue", "chat"), ("Beside it", "chat-2")))
            ]
        with gr.Row():
            self.stages = [
                gr.Markdown("", elem_classes=["stages"], elem_id=name, visible=number == 0)
                for number, name in enumerate(("stages", "stages-2"))
            ]
        self.box = gr.MultimodalTextbox(
            file_count="multiple",
            file_types=["image"],
            placeholder=f"Ask about a picture (up to {MAX_UPLOADS}). Enter sends, Shift+Enter is a new line.",
            show_label=False,
            elem_id="box",
            autofocus=True,
            sources=["upload"],
            max_plain_text_length=100_000,
        )
        with gr.Row(elem_classes=["actions"], equal_height=True):
            self.stop = gr.Button("⏹ Stop", elem_id="stop", interactive=False, size="sm")
            self.again = gr.Button("🔄 Regenerate", elem_id="again", interactive=False, size="sm")
            self.clear = gr.Button("🗑️ Clear", elem_id="clear", interactive=False, size="sm")
        with gr.Row(elem_classes=["votes"]):
            self.answer_votes = [
                gr.Button(text, elem_id=f"vote-{kind}", interactive=False, size="sm")
                for text, kind in ANSWER_VOTES
            ]
            self.pair_votes = [
                gr.Button(text, elem_id=f"pair-{kind}", interactive=False, visible=False, size="sm")
                for text, kind in PAIR_VOTES
            ]
        found = examples()
        gr.Examples(found, inputs=[self.box], label="Examples", cache_examples=False)

    def _lay_out_settings(self) -> None:
        gr.Markdown("### Parameters")
        self.greedy = gr.Checkbox(True, label="Greedy: always the likeliest word", elem_id="greedy")
        self.temperature = gr.Slider(0, 1, value=0.2, step=0.1, label="Temperature", elem_id="temperature")
        self.top_p = gr.Slider(0, 1, value=0.7, step=0.1, label="Top P")
        self.max_tokens = gr.Slider(0, 4096, value=1024, step=64, label="Max output tokens", elem_id="tokens")
        # No gr.Number: an empty one is 0 by the time it arrives, and every answer the same.
        self.seed = gr.Textbox(label="Seed", placeholder="empty: another one each time", elem_id="seed")
        self.mode = gr.Radio(
            list(MODES), value="Default", label="Preprocess for non-square image", elem_id="mode"
        )
        with gr.Accordion("What the model sees", open=False):
            self.seen = gr.Gallery(label="Pictures", columns=2, height=220, elem_id="seen", buttons=[])
            self.prompt = gr.Textbox(
                label="Exact prompt", lines=4, max_lines=12, interactive=False, elem_id="prompt"
            )
        with gr.Accordion("Conversation file", open=False):
            self.download = gr.Button("Download", size="sm", elem_id="download")
            self.upload = gr.UploadButton("Upload", size="sm", file_types=[".json"], elem_id="upload")
        with gr.Accordion("Votes", open=False):
            self.summary = gr.Dataframe(
                headers=["", "", ""], interactive=False, elem_id="summary", show_label=False
            )
            self.show_votes = gr.Button("Show", size="sm")

    def _connect(self) -> None:
        events = self.events
        chosen = [self.model, self.other, self.compare, self.blind, self.mode]
        sampling = [self.greedy, self.temperature, self.top_p, self.max_tokens, self.seed]
        shown = [
            *self.chats, *self.stages, self.kept, self.round, self.box, self.seen, self.prompt,
            self.stop, self.again, self.clear, *self.answer_votes, *self.pair_votes,
        ]  # fmt: skip
        private = {"api_visibility": "private"}
        answering = {
            **private,
            "concurrency_limit": events.options.concurrency,
            "concurrency_id": "answers",
            "show_progress": "hidden",
        }
        at_once = {**private, "queue": False, "show_progress": "hidden"}
        gr.on([self._blocks.load], events.load, [self.kept], [self.model, self.other, *shown], **at_once)
        self.box.submit(events.send, [self.box, self.kept, *chosen, *sampling], shown, **answering)
        self.again.click(events.again, [self.kept, *chosen, *sampling], shown, **answering)
        self.chats[0].edit(events.edit, [self.kept, *chosen, *sampling], shown, **answering)
        self.stop.click(events.stop, None, None, **at_once)
        for forget in (self.clear.click, self.chats[0].clear, self.chats[1].clear):
            forget(events.clear, None, shown, **at_once)
        self.compare.change(
            events.compare,
            [self.compare, self.kept],
            [self.other, self.blind, self.chats[1], self.stages[1], *self.answer_votes, *self.pair_votes],
            **at_once,
        )
        self.greedy.change(
            lambda is_greedy: [gr.update(interactive=not is_greedy)] * 3,
            self.greedy,
            [self.temperature, self.top_p, self.seed],
            **at_once,
        )
        for kind, button in zip((kind for _, kind in ANSWER_VOTES), self.answer_votes, strict=True):
            button.click(events.answer_vote(kind), [self.kept], self.answer_votes, **private)
        for kind, button in zip((kind for _, kind in PAIR_VOTES), self.pair_votes, strict=True):
            button.click(
                events.pair_vote(kind),
                [self.kept, self.round],
                [*self.chats, self.kept, *self.pair_votes],
                **private,
            )
        for component in (self.box, self.mode):
            component.change(
                events.preview,
                [self.box, self.model, self.mode],
                [self.seen],
                **{**private, "show_progress": "hidden", "trigger_mode": "always_last"},
            )
        self.download.click(None, [self.kept], None, js=_DOWNLOAD, **private)
        self.upload.upload(events.upload, [self.upload], shown, **private)
        self.show_votes.click(events.votes_table, None, self.summary, **private)
