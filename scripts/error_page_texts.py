"""The words of docs/errors/*.md, one entry a code; `scripts/write_error_pages.py` makes pages of them."""

from __future__ import annotations

from typing import NamedTuple


class Words(NamedTuple):
    """What somebody who meets an error wants to read."""

    happened: str
    example: tuple[str, str]
    """Cause and remedy as the code says them."""
    causes: tuple[tuple[str, str], ...]
    """Why it happens, and what to do then."""


_RAISED_BY_NOTHING = "No code raises this class itself: it is the base to catch"

WORDS: dict[str, Words] = {
    "error": Words(
        f"{_RAISED_BY_NOTHING} where every error of this project should be handled alike.",
        ("something is wrong", "Mend it."),
        (("Python code caught `LlavaError`", "Look at `.code`, `.cause` and `.remedy` of what was caught."),),
    ),
    "usage": Words(
        "A command, an option or a call cannot be carried out as it was given. Nothing was begun.",
        ("command chatt is not known", "Did you mean 'chat'? See: llava --help"),
        (
            ("A command or option is misspelt", "Take the suggestion, or see `llava COMMAND --help`."),
            ("Two options exclude each other, or one needs another", "Leave out the one that is named."),
            ("Beam search was asked of llama.cpp or a remote endpoint", "Use the torch engine, or one beam."),
            ("A rendered prompt was given to an endpoint that renders itself", "Give `turns` instead."),
            ("The page was asked to answer or regenerate without a question", "Write a question first."),
        ),
    ),
    "config": Words(
        "A field of a configuration, an option, or a number of a request has a value it cannot have.",
        ("temperature is 101", "It must be at least 0 and at most 100."),
        (
            ("A sampling number is out of bounds", "Take one within those of the message."),
            ("A name (template, picture mode, device) is not one of the known", "Take the one suggested."),
            (
                "preprocessor_config.json asks for pixels that are made differently",
                "Remove the field if it changes nothing, or take the file of the checkpoint's own tower.",
            ),
            ("`--moderate` without OPENAI_API_KEY", "Set the variable, or leave the option out."),
            ("A recipe's batch arithmetic does not come out even", "Give all but one of the numbers."),
        ),
    ),
    "dependency": Words(
        "Something needs a Python package that only an extra of this project installs.",
        (
            "httpx is not installed, and asking a server needs it",
            "Run: pip install 'internvl-chat-llava[remote]'",
        ),
        (
            ("`llava serve` without the extra `serve`", "Run the command in the message."),
            ("A GGUF file or the OpenVINO engine without the extra `cpu`", "Install it, or use torch."),
            ("8 or 4 bits without bitsandbytes (extra `quantize`)", "Install it, or load in bfloat16."),
            ("Training or parquet files without the extra `train`", "Install it."),
        ),
    ),
    "file": Words(
        "A file is missing, cannot be read or written, or is not what its name says.",
        ("questions.jsonl does not exist", "Check the path."),
        (
            ("The path is wrong, or relative to another folder", "Give it from where the command runs."),
            ("Broken JSON; line and column are named", "Mend that place, often a comma or a quote."),
            ("Permissions", "Let the user who runs the command read (or write) it."),
            ("The disk is full, while a log, vote or checkpoint is written", "Make room; no half is left."),
        ),
    ),
    "image": Words(
        "A picture is not there, is no picture, or cannot be decoded. Formats are told by content, not name.",
        ("no-such-picture.png does not exist", "Check the path."),
        (
            ("The file is cut off (an interrupted download)", "Get it again."),
            ("It is of a kind that is not read: SVG, PDF, HEIC, a web page", "Save it as PNG or JPEG."),
            (
                "An address in a request or command, where pictures are not fetched",
                "Send the picture itself, or allow addresses.",
            ),
            ("The data URI or base64 is broken", "Encode the file's bytes by standard base64."),
            ("The address leads to a private network, or redirects", "Give a public address."),
        ),
    ),
    "image-limit": Words(
        "A picture is over a limit of bytes, pixels, aspect ratio or frames, or there are too many. "
        "Sizes are read from its header, before anything is decoded.",
        ("17 pictures in one request", "Send at most 16."),
        (
            ("A photograph of more than 40 million pixels over HTTP (80 elsewhere)", "Make it smaller."),
            ("The pictures of one request have more than 80 million pixels together", "Send smaller ones."),
            ("A scan that is 200 times as long as wide", "Cut it into pieces."),
            ("A film saved as GIF or TIFF with over 1000 frames", "Give one frame."),
            ("In Python, your pictures are meant to be so large", "Pass `ImageLimits` with other numbers."),
        ),
    ),
    "checkpoint": Words(
        "A folder is no checkpoint, or one of a kind that cannot be loaded like this.",
        ("models/llava-lora is a LoRA adapter without its base", "Give --model-base."),
        (
            ("The folder holds only a projector, a LoRA adapter or a delta", "Give the base as well."),
            ("config.json is missing, or names a model type that is not known", "Copy the whole folder."),
            ("The vision tower is somewhere else and cannot be found", "Put it beside, or name its folder."),
            ("A folder of another program (AWQ, GPTQ)", "Take the original weights; see checkpoints.md."),
            ("`llava describe PATH` says what a folder is", "Begin with that."),
        ),
    ),
    "weights": Words(
        "Tensors are missing, unexpected, of another shape, or damaged. Nothing is loaded in part.",
        (
            "model-00002.safetensors is not a whole weights file: it ends too early",
            "Download or copy the file again.",
        ),
        (
            ("A download or copy was interrupted", "Get the named file again; compare its size."),
            ("An adapter or delta was made for another base", "Give the base that the message asks for."),
            ("A pickle holds more than tensors", "Use a safetensors file; code in it was not run."),
            ("Shapes differ: 7B against 13B, or another tower", "Take both from the same model."),
        ),
    ),
    "tokenizer": Words(
        "A tokenizer is missing, or cannot be converted with exactly its own ids.",
        (
            "models/mine has neither tokenizer.model nor tokenizer.json",
            "Copy the tokenizer files of the base language model into it.",
        ),
        (
            ("A checkpoint folder was copied without it", "Copy the base model's tokenizer files."),
            ("tokenizer.model is truncated, or a pointer of Git LFS", "Copy it again."),
            ("A sentencepiece model that is not of LLaMA's kind", "Give a tokenizer.json of this model."),
            ("added_tokens.json is of another vocabulary", "Take both files from the same model."),
        ),
    ),
    "prompt": Words(
        "The template of the model cannot hold the conversation.",
        (
            "template llava_llama_2 holds the system text in the first question, and there is none",
            "Begin the conversation with a question.",
        ),
        (
            ("Two questions or two answers follow each other", "Let user and assistant alternate."),
            ("An answer comes first", "Begin with a question."),
            (
                "With llama.cpp, the text spells a control token such as `</s>`",
                "Write it with a space in it.",
            ),
        ),
    ),
    "placeholder": Words(
        "The number of `<image>` places is not the number of pictures.",
        ("the prompt has 2 <image> placeholder(s) for 1 picture(s)", "Give one placeholder per picture."),
        (
            ("A rendered prompt (worker protocol, `Request(prompt=...)`) has another count", "Mend either."),
            (
                "A person typed `<image>` into a prompt that was rendered elsewhere",
                "Give turns: text stays text.",
            ),
            ("A training sample has more places than pictures", "`llava doctor` lists such samples."),
        ),
    ),
    "context-length": Words(
        "Prompt and pictures leave no room for an answer in the model's context.",
        (
            "the prompt has 2310 tokens, the model's context 2048",
            "Shorten the conversation, or use fewer pictures.",
        ),
        (
            ("A long conversation", "Start a new one, or clear it on the page."),
            (
                "Several pictures: each takes 576 tokens or more",
                "Send fewer; `llava describe` has the number.",
            ),
            ("A long document pasted as text", "Ask about a part of it."),
        ),
    ),
    "data": Words(
        "A training sample, question, transcript or vote breaks its format; file and line are named.",
        ("questions.jsonl: id '7' appears twice", "Give every line an id of its own."),
        (
            ("A line of a question file has no prompt, or is no object", "Mend that line."),
            ("Turns of a sample do not alternate between human and gpt", "Run `llava doctor --fix`."),
            (
                "The data changed since the run that is being resumed",
                "Restore it, or use a new output folder.",
            ),
            ("A transcript or vote file was edited by hand", "Mend or remove the line."),
        ),
    ),
    "rank": Words(
        "A process of a distributed run died, hangs, or cannot be reached. The run ends on every rank.",
        (
            "rank 1 lost touch with the others in the sum of gradients: Connection closed by peer",
            "Look for the first error of the others, then run the command again: it resumes.",
        ),
        (
            ("Another rank had an error of its own, or ran out of memory", "Read that rank's log first."),
            ("The machines do not reach each other, or the port is taken", "Check address, port, firewall."),
            ("Ranks were started with different numbers of processes", "Start all with the same command."),
        ),
    ),
    "training": Words(
        "The loss or a gradient is not a number. No weight was changed by this step.",
        ("the loss of step 120 is nan; samples 000000033471", "Look at bad_step.json."),
        (
            ("float16 overflowed", "Train in bfloat16 or float32."),
            ("The learning rate is too high, or has no warm-up", "Lower it, or lengthen the warm-up."),
            ("A broken sample or weight", "Look at the samples in bad_step.json with `llava doctor`."),
        ),
    ),
    "engine": Words(
        "An engine cannot go on with a request. Others that run beside it are not affected.",
        (
            "prompt and answer may take 9000 tokens, more than the engine has memory for",
            "Ask for fewer new tokens, shorten the prompt, or give the engine more memory.",
        ),
        (
            ("`max_tokens` reserves more keys and values than there is memory", "Ask for fewer tokens."),
            ("The device ran out of memory in the middle", "Allow fewer requests at once, or fewer bits."),
            ("The model computed something that is no number", "Load it in float32; check its weights."),
            ("The engine was closed meanwhile", "Load it again."),
        ),
    ),
    "engine-busy": Words(
        "Too many requests wait in front of an engine already.",
        ("1024 requests are waiting", "Try again later."),
        (
            ("A program submits without reading the answers", "Use `generate` over a window of requests."),
            ("More load than the machine carries", "Add a worker, or ask less often."),
        ),
    ),
    "remote": Words(
        "A server elsewhere cannot be reached, refuses, or answers nonsense.",
        (
            "http://localhost:8000 cannot be reached (ConnectError)",
            "Is it running, and is the address right?",
        ),
        (
            ("The server is not running, or listens elsewhere", "Open the address of the message."),
            ("The key is missing or wrong (401, 403)", "Give the endpoint's own key."),
            ("The model name is not the server's (404)", "See its /v1/models."),
            ("It broke off, or sent no token for two minutes", "Ask again; look into its log."),
        ),
    ),
    "serving": Words(
        f"{_RAISED_BY_NOTHING} for everything that a server answers with.",
        ("a server does not carry out a request", "See the code."),
        (("Python code caught `ServingError`", "Look at `.code`, and the page of that code."),),
    ),
    "request": Words(
        "The request is not as it should be: broken JSON, or a field with a value it cannot have.",
        ("messages: Field required", "Mend this field of the request."),
        (
            ("A field has the wrong type, or is misspelt", "The message names it as `a.b`."),
            ("A field asks for what this server does not do (tools, logit_bias)", "Leave it out."),
            ("The last message is not the user's", "End with a message of role user."),
            ("`image_url` is an address, and the server does not fetch", "Send a data URI."),
            ("An uploaded conversation is no file of the page", "Upload its own, or OpenAI's messages."),
        ),
    ),
    "authentication": Words(
        "The key (API, page) or token (workers) is missing or wrong.",
        ("The request has no key", "Send Authorization: Bearer KEY."),
        (
            ("A client without its key set", "The server says at its start in which file the key is."),
            ("The key of another server, or an old one", "Read the file again."),
            ("A worker on another machine has no token", "Give it the controller's file by `--token-file`."),
        ),
    ),
    "access": Words(
        "The server is called by a host name, or from a web page, that it is not open to.",
        (
            "The server is not open under this host name",
            "Call it by its own name, or start it with --allow-host NAME.",
        ),
        (
            (
                "It is behind a proxy or in a container under another name",
                "Start it with `--allow-host NAME`.",
            ),
            ("A page of another site calls it from your browser", "Allow that site, if you trust it."),
        ),
    ),
    "not-found": Words(
        "There is no such route, or no model of that name.",
        ("there is no model 'gpt-4'", "There is: InternVL-Chat-Tiny."),
        (
            ("The client's default model name", "Set it to one of `/v1/models`, or leave `model` out."),
            (
                "The base address lacks `/v1`, or has it twice",
                "Give `http://HOST:PORT/v1` to OpenAI's client.",
            ),
            ("The model's last worker has left the controller", "Start one, and look into its log."),
        ),
    ),
    "method": Words(
        "The route is there, and is not called by this method.",
        ("The route does not have this method", "Use POST."),
        (("A browser opened a route of the API", "Send a POST, as the examples of api.md do."),),
    ),
    "request-timeout": Words(
        "The request did not arrive whole in time.",
        ("the body did not arrive within 60 seconds", "Send it faster, or send less."),
        (
            ("A slow line and large pictures", "Make the pictures smaller before they are sent."),
            ("A client announced more bytes than it sends", "Mend its Content-Length."),
        ),
    ),
    "too-large": Words(
        "The request, or an uploaded file, is over a limit of bytes, depth, items or characters.",
        ("the body is over the limit of 67108864 bytes", "Send less, smaller pictures above all."),
        (
            ("Pictures at full size in base64, which adds a third", "Make them smaller."),
            ("The whole history with its pictures in every request", "Leave old pictures out."),
            ("JSON nested deeper than any dialogue is", "Send a flatter body."),
        ),
    ),
    "server-busy": Words(
        "The server has too many connections or requests at this moment. Nothing was computed.",
        ("64 requests are waiting", "Try again later."),
        (
            ("More load than the model carries", "Wait as long as Retry-After says, or add workers."),
            ("Many large pictures at the same time", "Send fewer at once."),
            ("Clients that keep connections open", "Reuse one client; close those that are done."),
        ),
    ),
    "unavailable": Words(
        "The server is still loading, or about to stop.",
        ("The server is still loading", "Try again in a moment."),
        (
            ("It was started a moment ago", "Wait until `/ready` answers 200."),
            (
                "It got a signal to stop, and finishes what runs",
                "Ask another server, or again after its start.",
            ),
            ("Loading failed", "Look into its log."),
        ),
    ),
    "answer-timeout": Words(
        "The answer took longer than the server allows, and was given up.",
        ("the answer was not complete after 600 seconds", "Ask for fewer tokens."),
        (
            ("A long answer on a slow machine", "Lower `max_tokens`, or take a faster engine."),
            ("A long queue in front of it", "Add workers."),
            ("The engine hangs", "Look into the server's log."),
        ),
    ),
    "internal": Words(
        "A fault of the server itself. What it was stands in its log under the request id.",
        (
            "The server failed while it worked on the request",
            "Ask whoever runs the server: its log has the details under this request id.",
        ),
        (("A bug", "Look for the request id in the log, and report the traceback there."),),
    ),
    "registration": Words(
        "A controller cannot call a worker at the address that it gives.",
        (
            "The worker does not answer at the address it gives",
            "Give --worker-address an address that the controller reaches.",
        ),
        (
            ("The worker gives localhost to a controller on another machine", "Give `--worker-address`."),
            ("NAT, a container or a firewall is between them", "Open the port; give the outer address."),
            ("Two workers have one address", "Give each its own `--port`."),
            (
                "`register_worker` was given a vLLM, SGLang or llama-server, which has no worker's routes",
                "Start a worker in front of it, by the command that the error names.",
            ),
        ),
    ),
    "worker-lost": Words(
        "A worker cannot be reached, or broke off in the middle of an answer. Only its own answers are lost.",
        ("The worker broke off in the middle of the answer", "Ask again."),
        (
            ("It was killed (often by the system, out of memory)", "Look into its log and the system's."),
            ("Its machine or the line went away", "Ask again: another worker takes it, if there is one."),
            ("It does not take requests of this controller", "Give both the same token."),
        ),
    ),
    "reported": Words(
        "A controller or worker said what is wrong. Code and words are theirs; in a terminal their code is "
        "shown, and only a server without codes makes it `error-NUMBER`.",
        ("NETWORK ERROR DUE TO HIGH TRAFFIC", "Look into the worker's log."),
        (
            ("A server of this project named a code", "See the page of that code."),
            ("A worker of the original gave its one sentence for everything", "Look into that worker's log."),
        ),
    ),
}
