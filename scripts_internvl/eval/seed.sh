#!/bin/sh
# SEED-Bench: answers, accuracies by type, then the file for the leaderboard.
. "$(dirname "$0")/common.sh"

folder=$data/seed_bench
answer_in_chunks "$folder/llava-seed-bench.jsonl" "$folder" "$folder/answers/$tag" "$@"
mkdir -p "$folder/answers_upload"
"$python" "$root/scripts/convert_seed_for_submission.py" --annotation-file "$folder/SEED-Bench.json" \
    --result-file "$folder/answers/$tag/merge.jsonl" --result-upload-file "$folder/answers_upload/$tag.jsonl"
