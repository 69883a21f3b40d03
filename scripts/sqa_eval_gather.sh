#!/bin/sh
# What sqa_eval_batch.sh answered, in one file, and its accuracy: sqa_eval_gather.sh CHECKPOINT, on as many GPUs.
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts_internvl/eval/common.sh"

answers=$data/scienceqa/answers/$tag
merge_chunks "$answers" "$answers.jsonl"
"$python" -m llava.eval.eval_science_qa --base-dir "$data/scienceqa" --result-file "$answers.jsonl" \
    --output-file "${answers}_output.json" --output-result "${answers}_result.json"
