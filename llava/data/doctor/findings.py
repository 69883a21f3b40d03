"""What the doctor can find: every kind with its severity and remedy, one finding, and the collection of them.

Codes are stable: scripts may rely on them. Only so many examples of a kind are kept, so that a file with a
million faults fits in memory; the counts are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Severity = Literal["error", "warning", "info"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "info")
"""error: training fails on it or learns something not meant; warning: probably a mistake; info: harmless."""


class Kind(NamedTuple):
    """One kind of finding."""

    group: str
    severity: Severity
    title: str
    remedy: str


_FILE = "File"
_RECORD = "Record"
_TURNS = "Turns"
_PLACEHOLDERS = "Placeholders"
_PICTURES = "Pictures"
_TEXT = "Text"
_TOKENS = "Tokens"
_DUPLICATES = "Duplicates"
_MIXTURE = "Mixture"
GROUPS: Final = (
    _MIXTURE,
    _FILE,
    _RECORD,
    _TURNS,
    _PLACEHOLDERS,
    _PICTURES,
    _TEXT,
    _TOKENS,
    _DUPLICATES,
)
_ONE_EACH = "Write <image> once for every picture, in a question."

KINDS: Final[dict[str, Kind]] = {
    "file-empty": Kind(_FILE, "error", "No samples", "Give a JSON list or one JSON object a line."),
    "file-bom": Kind(_FILE, "warning", "Byte order mark", "Save the file as UTF-8 without BOM."),
    "file-crlf": Kind(_FILE, "info", "Windows line ends", "Harmless; save with \\n to be like other files."),
    "file-encoding": Kind(_FILE, "error", "Not UTF-8", "Save the file as UTF-8."),
    "json-syntax": Kind(_FILE, "error", "Not JSON", "Mend the line; json.dump writes correct JSON."),
    "json-trailing-comma": Kind(_FILE, "error", "Comma without a successor", "Remove the comma."),
    "json-comma-missing": Kind(_FILE, "error", "No comma between samples", "Write a comma."),
    "json-control-character": Kind(
        _FILE, "error", "Raw control character in a JSON text", "Write line breaks in a text as \\n."
    ),
    "json-unclosed": Kind(_FILE, "error", "File ends too early", "Get the file again; its end is missing."),
    "json-extra": Kind(_FILE, "error", "Text after the end of the list", "Keep one list in a file."),
    "json-duplicate-key": Kind(
        _FILE, "warning", "Key twice in one object", "The last counts; remove the others."
    ),
    "not-a-list": Kind(_FILE, "error", "Neither a list nor lines", "Put the samples into a JSON list."),
    "record-type": Kind(_RECORD, "error", "Sample is no object", "Write each sample as a JSON object."),
    "record-refused": Kind(_RECORD, "error", "Sample refused by the trainer", "See what the trainer says."),
    "id-missing": Kind(_RECORD, "warning", "No id", "Give every sample an id; reports name it."),
    "id-type": Kind(_RECORD, "warning", "Id is neither text nor number", "Write the id as a text."),
    "id-duplicate": Kind(_RECORD, "warning", "Id used twice", "Give every sample its own id."),
    "conversations-missing": Kind(
        _RECORD, "error", "No conversation", "Give the turns as `conversations` (or OpenAI's `messages`)."
    ),
    "conversations-type": Kind(_RECORD, "error", "Conversation is no list", "Write a list of turns."),
    "conversations-empty": Kind(_RECORD, "error", "Conversation is empty", "Give a question and an answer."),
    "key-unknown": Kind(_RECORD, "info", "Key that nothing reads", "Harmless; it may be removed."),
    "key-misspelled": Kind(_RECORD, "error", "Key that looks misspelled", "Use the known spelling."),
    "turn-type": Kind(_TURNS, "error", "Turn is no object", 'Write {"from": "human", "value": "..."}.'),
    "role-missing": Kind(_TURNS, "error", "Turn without a role", "Use from: human or gpt."),
    "role-unknown": Kind(_TURNS, "error", "Role not known", "Use from: human or gpt."),
    "roles-not-alternating": Kind(
        _TURNS, "error", "Two turns of one side in a row", "Join them, or add the turn between them."
    ),
    "starts-with-answer": Kind(
        _TURNS, "warning", "Begins with an answer", "The first answer is dropped in training; add a question."
    ),
    "ends-with-question": Kind(
        _TURNS, "warning", "Ends with a question", "The last question teaches nothing; answer or remove it."
    ),
    "answer-none": Kind(_TURNS, "error", "No answer at all", "Add an answer; only answers are trained."),
    "value-missing": Kind(_TURNS, "error", "Turn without text", "Give `value` a text."),
    "value-type": Kind(_TURNS, "error", "Text is no text", "Write the value as a JSON text."),
    "answer-empty": Kind(
        _TURNS, "error", "Answer is empty", "It would teach to end at once; write or remove it."
    ),
    "answer-blank": Kind(_TURNS, "error", "Answer is only white space", "Write or remove the answer."),
    "question-empty": Kind(_TURNS, "warning", "Question is empty", "Write the question."),
    "question-blank": Kind(_TURNS, "warning", "Question is only white space", "Write the question."),
    "placeholder-without-picture": Kind(
        _PLACEHOLDERS, "error", "<image> without a picture", "Name the picture, or remove <image>."
    ),
    "picture-without-placeholder": Kind(
        _PLACEHOLDERS, "error", "Picture without <image>", "Put <image> where the picture belongs."
    ),
    "placeholder-count": Kind(_PLACEHOLDERS, "error", "More or fewer <image> than pictures", _ONE_EACH),
    "placeholder-in-answer": Kind(
        _PLACEHOLDERS, "error", "<image> in an answer", "A picture belongs in a question."
    ),
    "placeholder-misspelled": Kind(
        _PLACEHOLDERS, "error", "Misspelled placeholder", "Write <image>, exactly so."
    ),
    "image-type": Kind(_PICTURES, "error", "`image` is no path", "Give a path, or a list of paths."),
    "image-empty": Kind(_PICTURES, "error", "`image` is empty", "Leave `image` out of text samples."),
    "image-keys": Kind(_PICTURES, "error", "Pictures named twice", "Keep one of `image` and `images`."),
    "picture-absolute": Kind(
        _PICTURES, "warning", "Absolute path", "Name pictures relative to the picture folder."
    ),
    "picture-escapes": Kind(
        _PICTURES, "error", "Path leads out of the picture folder", "Choose a folder above all pictures."
    ),
    "picture-address": Kind(_PICTURES, "error", "Web address", "Download the picture and name the file."),
    "picture-missing": Kind(_PICTURES, "error", "Picture missing", "Get the file, or remove the sample."),
    "picture-case": Kind(
        _PICTURES, "error", "Other upper and lower case on disk", "Use the spelling on disk."
    ),
    "picture-zero-bytes": Kind(_PICTURES, "error", "Empty file", "Get the file again."),
    "picture-unreadable": Kind(_PICTURES, "error", "Not a picture", "Get the file again."),
    "picture-broken": Kind(_PICTURES, "error", "Picture cannot be decoded", "Get the file again."),
    "picture-truncated": Kind(_PICTURES, "error", "Picture is cut off", "Get the file again."),
    "picture-over-limit": Kind(_PICTURES, "error", "Picture over a limit", "Make the picture smaller."),
    "picture-extension": Kind(
        _PICTURES, "warning", "File name belies the format", "Harmless here; other tools go by the name."
    ),
    "picture-tiny": Kind(_PICTURES, "warning", "Tiny picture", "Check that it is no icon or tracking pixel."),
    "picture-aspect": Kind(_PICTURES, "warning", "Very long and narrow", "Cut it, or leave it out."),
    "picture-large": Kind(_PICTURES, "warning", "Very large", "Scale it down; decoding it slows training."),
    "picture-animated": Kind(_PICTURES, "warning", "Animated", "Only the first frame is used."),
    "picture-flat": Kind(_PICTURES, "warning", "One single colour", "Check that it is the right picture."),
    "text-control-token": Kind(
        _TEXT, "warning", "Control token in a text", "It is encoded as text here; other trainers obey it."
    ),
    "text-role-marker": Kind(
        _TEXT, "warning", "Role marker in a text", "Looks like several turns in one; split or remove it."
    ),
    "text-surrogate": Kind(_TEXT, "error", "Half a character", "Remove the lone \\ud8xx escape."),
    "text-replacement": Kind(
        _TEXT, "warning", "Replacement character", "A character was lost earlier; get the text again."
    ),
    "text-mojibake": Kind(
        _TEXT, "warning", "Garbled characters", "UTF-8 was read as Latin-1 earlier; decode it rightly."
    ),
    "text-control-character": Kind(_TEXT, "warning", "Control character", "Remove it from the text."),
    "sample-untrainable": Kind(
        _TOKENS, "error", "Template cannot hold the sample", "See what the encoder says."
    ),
    "nothing-trained": Kind(_TOKENS, "error", "No token is trained", "Give an answer that has text."),
    "question-too-long": Kind(
        _TOKENS, "error", "Nothing trained is left within the length", "Shorten the first question or answer."
    ),
    "over-length": Kind(
        _TOKENS, "warning", "Later turns do not fit", "They are cut off whole; split the sample."
    ),
    "sample-duplicate": Kind(_DUPLICATES, "warning", "Same sample again", "Keep one of them."),
    "answer-conflict": Kind(
        _DUPLICATES, "warning", "Same question, other answer", "Keep the right one, unless both are meant."
    ),
    "picture-duplicate": Kind(
        _DUPLICATES, "info", "Same picture under another name", "Harmless; one file would do."
    ),
    "picture-near-duplicate": Kind(
        _DUPLICATES, "info", "Nearly the same picture", "Look whether both are wanted."
    ),
    "benchmark-overlap": Kind(
        _DUPLICATES, "error", "Picture of a benchmark", "Remove the sample, or its scores mean nothing."
    ),
    "mixture-entry": Kind(_MIXTURE, "error", "Entry is no object", "Give root and annotation."),
    "mixture-annotation": Kind(_MIXTURE, "error", "Annotation missing", "Name an existing data file."),
    "mixture-annotation-twice": Kind(
        _MIXTURE, "warning", "Annotation in two entries", "Use repeat_time to repeat samples."
    ),
    "mixture-root": Kind(_MIXTURE, "error", "Root is no folder", "Name an existing picture folder."),
    "mixture-repeat": Kind(_MIXTURE, "error", "Bad repeat_time", "Give a number above 0."),
    "mixture-weight": Kind(_MIXTURE, "error", "Bad weight", "Give a number above 0."),
    "mixture-key": Kind(_MIXTURE, "error", "Unknown key", "Known: root, annotation, repeat_time, weight."),
    "mixture-augment": Kind(
        _MIXTURE, "info", "data_augment has no effect", "Nothing reads it; neither did the original."
    ),
}
"""Code -> what it stands for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found."""

    code: str
    """Key of KINDS."""
    source: str
    """Data file, or mixture entry."""
    line: int
    """Line on which the sample begins (or the fault itself, where it breaks the JSON); 0: the whole file; for
    a table the row, from 1."""
    sample: int
    """Number of the sample over all files, from 0; -1: no sample."""
    id: str
    """The sample's id; empty: none."""
    detail: str
    """What exactly, with the value."""
    picture: str = ""
    """Picture file concerned."""
    other_picture: str = ""
    """The picture it is compared with."""

    @property
    def kind(self) -> Kind:
        """What its code stands for."""
        return KINDS[self.code]

    @property
    def where(self) -> str:
        """File and line in words."""
        return f"{self.source}:{self.line}" if self.line else self.source

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON holds it."""
        fields: dict[str, object] = {
            "code": self.code,
            "severity": self.kind.severity,
            "file": self.source,
            "line": self.line or None,
            "sample": self.sample if self.sample >= 0 else None,
            "id": self.id or None,
            "detail": self.detail,
            "remedy": self.kind.remedy,
        }
        if self.picture:
            fields["picture"] = self.picture
        if self.other_picture:
            fields["other_picture"] = self.other_picture
        return fields


class Findings:
    """All that was found: exact counts, and the first examples of each kind."""

    def __init__(self, *, keep: int = 1000) -> None:
        self.keep = keep
        self.counts: Counter[str] = Counter()
        """Code to how often."""
        self.by_source: Counter[tuple[str, Severity]] = Counter()
        self._kept: dict[str, list[Finding]] = {}

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it unless there are enough of its kind."""
        self.counts[finding.code] += 1
        self.by_source[finding.source, finding.kind.severity] += 1
        kept = self._kept.setdefault(finding.code, [])
        if len(kept) < self.keep:
            kept.append(finding)

    def of(self, code: str) -> list[Finding]:
        """Return the kept examples of one kind, in the order of the data."""
        return sorted(self._kept.get(code, []), key=lambda finding: (finding.sample, finding.line))

    def __iter__(self) -> Iterator[Finding]:
        """Yield the kept findings, the gravest kinds first."""
        for code in self.codes():
            yield from self.of(code)

    def codes(self) -> list[str]:
        """Return the codes that were found, by severity and then by frequency."""
        order = list(KINDS)
        return sorted(
            self.counts,
            key=lambda code: (SEVERITIES.index(KINDS[code].severity), -self.counts[code], order.index(code)),
        )

    def num(self, severity: Severity) -> int:
        """Return how many findings have this severity."""
        return sum(count for code, count in self.counts.items() if KINDS[code].severity == severity)
