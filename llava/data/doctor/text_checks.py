"""What the text of a turn should not hold: control tokens, role markers, lost or garbled characters.

Part of `samples.check`; pure, and fast on text that is sound.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

CONTROL_TOKENS: Final = re.compile(
    r"</?s>|<unk>|<pad>|\[/?INST\]|<</?SYS>>|<\|(?:im_start|im_end|endoftext|end|user|assistant|system|eot_id"
    r"|begin_of_text)\|>|<im_(?:start|end|patch)>|<eo[ah]>|<\|(?:User|Bot)\|>"
)
"""Control tokens of the templates that models of this family use."""
_ROLE_MARKERS: Final = re.compile(
    r"(?:^|\n|\s)(?:USER|ASSISTANT): |(?:^|\n)### ?(?:Human|Assistant|User|Instruction|Response):"
    r"|(?:^|\n)(?:Human|Assistant): "
)
# UTF-8 read as Latin-1 or Windows-1252: a lead byte and what follows it, as two characters.
_MOJIBAKE: Final = re.compile(
    "\u00c3[\u0080-\u00bf\u0192\u2020\u2021\u02c6\u2030\u0160\u0152\u017d\u2018-\u201d\u2022\u2013\u2014\u02dc"
    "\u2122\u0161\u0153\u017e\u0178]|\u00e2\u20ac[\u0080-\u00bf\u0153\u2122\u02dc\u201c\u201d\u00a6\u2039]"
    "|\u00c2[\u00a0-\u00bf]|\u00ef\u00bf\u00bd|\u00f0\u0178"
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PLAIN: Final = re.compile(r"[^<\[#:\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\U0010ffff]*")


class _Sample(Protocol):
    def fault(self, code: str, detail: str) -> None: ...


def check_text(text: str, sample: _Sample, *, is_answer: bool) -> None:
    """Note what a turn's text should not hold."""
    if _PLAIN.fullmatch(text):
        return
    side = "answer" if is_answer else "question"
    for code, pattern in (
        ("text-surrogate", _SURROGATE),
        ("text-control-character", _CONTROL),
        ("text-mojibake", _MOJIBAKE),
        ("text-control-token", CONTROL_TOKENS),
        ("text-role-marker", _ROLE_MARKERS),
    ):
        found = pattern.search(text)
        if found:
            sample.fault(code, f"the {side} holds {found[0].strip(' ')!r}: {excerpt(text, found.start())}")
    place = text.find("\ufffd")
    if place >= 0:
        sample.fault("text-replacement", f"the {side} holds U+FFFD: {excerpt(text, place)}")


def excerpt(text: str, place: int, *, width: int = 24) -> str:
    """Return the text around a place, on one line and printable."""
    piece = text[max(place - width, 0) : place + width]
    before, after = ("..." if place > width else ""), ("..." if place + width < len(text) else "")
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in piece)
    return f"{before}{shown}{after}"


def mended_text(text: str) -> str:
    """Return the text without what can be undone exactly: half characters, control characters, mojibake."""
    text = _CONTROL.sub("", _SURROGATE.sub("", text))
    if _MOJIBAKE.search(text):
        for codec in ("cp1252", "latin-1"):
            try:
                return text.encode(codec).decode("utf-8")
            except (UnicodeEncodeError, UnicodeDecodeError):
                continue
    return text
