#!/bin/sh
# MME: answers, the official scorer's files, then the scores.
. "$(dirname "$0")/common.sh"

answers=$data/MME/answers/$tag.jsonl
answer model_vqa_loader "$data/MME/llava_mme.jsonl" "$data/MME/MME_Benchmark_release_version" "$answers" "$@"
"$python" "$root/scripts/convert_answer_to_mme.py" --dir "$data/MME" --experiment "$tag"
"$python" -m llava.cli eval score mme --data "$data" --answers "$answers"
