#!/bin/sh
# MM-Vet: answers, then the file for its grader.
. "$(dirname "$0")/common.sh"

folder=$data/mm-vet
answer model_vqa "$folder/llava-mm-vet.jsonl" "$folder/images" "$folder/answers/$tag.jsonl" "$@"
mkdir -p "$folder/results"
"$python" "$root/scripts/convert_mmvet_for_eval.py" --src "$folder/answers/$tag.jsonl" --dst "$folder/results/$tag.json"
