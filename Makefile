# Two commands of a fresh clone: `make chat` and `make test`. See `make help`.

.NOTPARALLEL:
.PHONY: help chat test check setup train-tiny clean
.DEFAULT_GOAL := help

# $(value ...) takes a variable as it was typed: quotes, spaces and $ of a prompt reach the program unchanged,
# and a prompt that spells a make function stays text.
export LLAVA_CHAT_IMAGE := $(value IMAGE)
export LLAVA_CHAT_PROMPT := $(value PROMPT)
export LLAVA_SETUP_PYTHON := $(value PYTHON)
unexport IMAGE PROMPT PYTHON

BIN := .venv/bin

# Any Python can run the setup script; the script then finds the one that .venv is made with.
define SETUP
for python in "$$LLAVA_SETUP_PYTHON" python3 python3.13 python3.12 python3.11 python3.10 python; do \
    if [ -n "$$python" ] && "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then \
        break; \
    fi; \
    python=; \
done; \
if [ -z "$$python" ]; then \
    echo "error: no Python found. Install 3.10 to 3.13 (Debian: apt-get install python3 python3-venv)" >&2; \
    exit 2; \
fi; \
"$$python" scripts/setup_env.py --python="$$LLAVA_SETUP_PYTHON"
endef

help:
	@echo 'make chat                              talk about an example picture with the embedded model'
	@echo 'make chat IMAGE=x.jpg PROMPT="..."     ask once about a picture of yours'
	@echo 'make test                              run the tests (ARGS="-k name" goes to pytest)'
	@echo 'make check                             formatting, lint and types, as CI does'
	@echo 'make setup                             only make .venv, with what tests need'
	@echo 'make train-tiny                        train the embedded model: hours (TINY_STEPS=4: a minute, to try)'
	@echo 'make clean                             remove .venv, caches and build output'
	@echo
	@echo 'PYTHON=/path/to/python3.12 chooses the interpreter for a new .venv (3.10 to 3.13).'

# With a question, or where nobody can type one, it answers once.
chat:
	@$(SETUP) chat
	@set -- chat; \
	if [ -n "$$LLAVA_CHAT_IMAGE" ]; then set -- "$$@" --image="$$LLAVA_CHAT_IMAGE"; fi; \
	if [ -n "$$LLAVA_CHAT_PROMPT" ]; then set -- "$$@" --prompt="$$LLAVA_CHAT_PROMPT"; fi; \
	if [ -t 0 ]; then exec $(BIN)/llava "$$@"; else exec $(BIN)/llava "$$@" </dev/null; fi

# The tests' models are tiny: a second thread only waits for the first, and on a busy machine it waits long.
# Two processes share the test files, since many tests wait for a server or a clock.
test:
	@$(SETUP) dev
	@OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check:
	@$(SETUP) dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

setup:
	@$(SETUP) dev

# Every step goes on where it was stopped. TINY_STEPS=N makes N steps of each stage, which teaches nothing.
TINY_OUT ?= runs/tiny
ifdef TINY_STEPS
TINY_PRETRAIN := --tower-steps $(TINY_STEPS) --align-steps $(TINY_STEPS) --finetune-steps $(TINY_STEPS)
TINY_DATA := --align 64 --finetune 64
TINY_TRAIN := --run.max_steps $(TINY_STEPS)
TINY_SCENES := --scenes 8
endif
TINY_TRAIN += --model.path $(TINY_OUT)/base --data.image_folder $(TINY_OUT)/data

train-tiny: export OMP_NUM_THREADS := 1
train-tiny:
	@$(SETUP) dev
	$(BIN)/python -m llava.train.tiny.recipe --out $(TINY_OUT) $(TINY_PRETRAIN)
	$(BIN)/python -m llava.train.tiny.data --out $(TINY_OUT)/data $(TINY_DATA)
	$(BIN)/llava train recipes/tiny-align.yaml $(TINY_TRAIN) \
	    --data.path $(TINY_OUT)/data/align.jsonl --run.output_dir $(TINY_OUT)/stage-1
	$(BIN)/llava train recipes/tiny-finetune.yaml $(TINY_TRAIN) --model.projector $(TINY_OUT)/stage-1 \
	    --data.path $(TINY_OUT)/data/finetune.jsonl --run.output_dir $(TINY_OUT)/stage-2
	$(BIN)/python -m llava.train.tiny.export --trained $(TINY_OUT)/stage-2 --out $(TINY_OUT)/InternVL-Chat-Tiny
	$(BIN)/python -m llava.eval.heldout --model $(TINY_OUT)/InternVL-Chat-Tiny $(TINY_SCENES)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
