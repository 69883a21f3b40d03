"""A `ChatTemplate` -> the Jinja text that makes plain transformers write the same prompt.

Used by `tokenizer.save_tokenizer`. transformers encodes a rendered conversation in one pass and adds no
begin-of-sequence token, so the Jinja text writes it, and for non-legacy LLaMA tokenizers also the space that
the original's chunk-by-chunk encoding puts in front of the text after a picture.
"""

from __future__ import annotations

import json
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.processing.encoding import begins_with_bos, is_nonlegacy_sentencepiece
from llava.rendering import Turn
from llava.templates import ChatTemplate

_CONTENT = "\0"
_SYSTEM = "\1"

_JINJA = """\
{{%- set ns = namespace(prompt='', system={system}, role='assistant', content='', start='') -%}}
{{%- for message in messages -%}}
{{%- if message['content'] is string -%}}
{{%- set ns.content = message['content'] -%}}
{{%- else -%}}
{{%- set ns.content = '' -%}}
{{%- for part in message['content'] -%}}
{{%- set ns.content = ns.content + ({image} if part['type'] == 'image' else part['text']) -%}}
{{%- endfor -%}}
{{%- endif -%}}
{{%- if message['role'] == 'system' -%}}
{{%- set ns.system = {system_header} + ns.content -%}}
{{%- elif message['role'] == ns.role or message['role'] not in ['user', 'assistant'] -%}}
{{{{- raise_exception('roles must alternate: user, assistant, user, ...') -}}}}
{{%- else -%}}
{{%- set ns.role = message['role'] -%}}
{{%- if ns.prompt == '' -%}}
{{%- set ns.start = {before_system} + ns.system + {after_system} if ns.system else {start} -%}}
{{%- set ns.prompt = ns.start + ns.content -%}}
{{%- else -%}}
{{%- set ns.prompt = ns.prompt + ({to_answer} if ns.role == 'assistant' else {to_question}) + ns.content -%}}
{{%- endif -%}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
{{%- set ns.prompt = ns.prompt + {open_answer} -%}}
{{%- else -%}}
{{%- set ns.prompt = ns.prompt + ({after_answer} if ns.role == 'assistant' else {after_question}) -%}}
{{%- endif -%}}
{{{{- {bos} -}}}}
{{%- for chunk in ns.prompt.split('{image_token}') -%}}
{{{{- '' if loop.first else '{image_token}' -}}}}
{{{{- {space} if chunk -}}}}
{{{{- chunk -}}}}
{{%- endfor -%}}
"""


def chat_template(template: ChatTemplate, tokenizer: PreTrainedTokenizerFast, *, im_start_end: bool) -> str:
    """Return Jinja text; messages are user and assistant in turn, a system message replaces the system text.

    Content is text, or parts of type "image" and "text"; a picture part brings its own newline.
    """
    question, answer = Turn("user", (_CONTENT,)), Turn("assistant", (_CONTENT,))
    marked = replace(template, system=_SYSTEM)

    def text(*turns: Turn, is_open: bool = False, style: ChatTemplate = marked) -> list[str]:
        spans = style.render(turns, add_generation_prompt=is_open)
        return "".join(span.text for span in spans).split(_CONTENT)

    before_system, after_system = text(question)[0].split(_SYSTEM)
    header, newline, _ = template.system.partition("\n")
    image = DEFAULT_IMAGE_TOKEN
    if im_start_end:
        image = DEFAULT_IM_START_TOKEN + image + DEFAULT_IM_END_TOKEN
    values = {
        "system": template.system,
        "system_header": header + newline if template.style == "MPT" else "",
        "image": image + "\n",
        "before_system": before_system,
        "after_system": after_system,
        "start": text(question, style=replace(template, system=""))[0],
        "to_answer": text(question, answer)[1],
        "to_question": text(question, answer, question)[2],
        "open_answer": text(question, is_open=True)[1],
        "after_question": text(question)[1],
        "after_answer": text(question, answer)[2],
        "bos": tokenizer.bos_token if begins_with_bos(tokenizer) else "",
    }
    literals = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return _JINJA.format(**literals, image_token=DEFAULT_IMAGE_TOKEN, space=_space(tokenizer))


def _space(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the Jinja expression for what goes in front of a chunk."""
    if not is_nonlegacy_sentencepiece(tokenizer):
        return "''"
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special]
    tests = " or ".join(f"chunk.startswith({json.dumps(content)})" for content in special)
    return f"('' if {tests} else ' ')"
