"""What comes before the embedded model's two stages: from an earlier checkpoint to a pretrained base.

    python -m llava.train.tiny.recipe --out runs/tiny        (a part of `make train-tiny`)

Tokenizer, language model and tower begin as an earlier checkpoint of the kind has them (the embedded one).
The vision tower learns what each patch shows (`tower.py`); then tower and language model learn to work
together (`chat.py`): first a projector alone between them, then all three. The projector is dropped:
OUT/base has a fresh one. `llava train` makes the model of it: recipes/tiny-align.yaml, tiny-finetune.yaml.

Every picture is fresh: the step number seeds it. A run that was stopped goes on from its last checkpoint when
it is started again with the same folder.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from llava import log
from llava.demo import embedded_model_path
from llava.train.tiny.chat import ChatStage, begin_language, train_chat
from llava.train.tiny.export import write_base
from llava.train.tiny.tower import TowerStage, train_tower

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")


def copy_tokenizer(begin: Path, folder: Path) -> None:
    """Copy the tokenizer of the checkpoint that training begins with."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(begin / name, folder / name)


def align(
    run: Path, tower: TowerStage, begin: Path, *, num_steps: int, batch_size: int, num_questions: int
) -> ChatStage:
    """Train a fresh projector between the tower and `begin`'s language model, or load the result."""
    torch.manual_seed(1)
    stage = ChatStage(tower, run, "align", batch_size=batch_size, num_questions=num_questions)
    begin_language(stage.language_model, begin)
    return train_chat(run / "align", stage, num_steps=num_steps, lr=4e-3, tower_lr=0.0)


def finetune(
    run: Path, aligned: ChatStage, tower: TowerStage, *, num_steps: int, batch_size: int, num_questions: int
) -> ChatStage:
    """Train projector, language model and tower together, or load the result."""
    stage = ChatStage(tower, run, "finetune", batch_size=batch_size, num_questions=num_questions)
    stage.load_state_dict(aligned.state_dict())
    stage.requires_grad_(True)
    return train_chat(run / "finetune", stage, num_steps=num_steps, lr=3e-3, tower_lr=1e-3)


def main() -> None:
    """Pretrain, and write the base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the result")
    parser.add_argument("--begin", type=Path, default=embedded_model_path(), help="checkpoint to go on from")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tower-steps", type=int, default=1600)
    parser.add_argument("--align-steps", type=int, default=300)
    parser.add_argument("--finetune-steps", type=int, default=1000)
    parser.add_argument("--chat-batch", type=int, default=8, help="pictures per step")
    parser.add_argument("--questions", type=int, default=14, help="questions per picture")
    args = parser.parse_args()
    log.configure(verbose=True)
    torch.set_num_threads(args.threads)
    size = {"batch_size": args.chat_batch, "num_questions": args.questions}
    copy_tokenizer(args.begin, args.out / "tokenizer")
    tower = train_tower(args.out, num_steps=args.tower_steps, begin=args.begin)
    aligned = align(args.out, tower, args.begin, num_steps=args.align_steps, **size)
    finetune(args.out, aligned, tower, num_steps=args.finetune_steps, **size)
    write_base(args.out, args.out / "base")


if __name__ == "__main__":
    main()
