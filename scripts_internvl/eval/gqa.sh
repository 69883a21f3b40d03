#!/bin/sh
# GQA testdev: answers, then the accuracy and the official file of predictions.
. "$(dirname "$0")/common.sh"

split=llava_gqa_testdev_balanced
answers=$data/gqa/answers/$split/$tag/merge.jsonl
answer_in_chunks "$data/gqa/$split.jsonl" "$data/gqa/data/images" "$data/gqa/answers/$split/$tag" "$@"
"$python" "$root/scripts/convert_gqa_for_eval.py" --src "$answers" --dst "$data/gqa/data/testdev_balanced_predictions.json"
"$python" -m llava.cli eval score gqa --data "$data" --answers "$answers"
