#!/bin/sh
# POPE: answers, then the figures of the three splits.
. "$(dirname "$0")/common.sh"

answers=$data/pope/answers/$tag.jsonl
answer model_vqa_loader "$data/pope/llava_pope_test.jsonl" "$data/pope/val2014" "$answers" "$@"
"$python" -m llava.eval.eval_pope --annotation-dir "$data/pope/coco" \
    --question-file "$data/pope/llava_pope_test.jsonl" --result-file "$answers"
