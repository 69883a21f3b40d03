#!/bin/sh
# VizWiz test: answers, then the file for the server.
. "$(dirname "$0")/common.sh"

folder=$data/vizwiz
answers=$folder/answers/$tag.jsonl
answer model_vqa_loader "$folder/llava_test.jsonl" "$folder/test" "$answers" "$@"
mkdir -p "$folder/answers_upload"
"$python" "$root/scripts/convert_vizwiz_for_submission.py" --annotation-file "$folder/llava_test.jsonl" \
    --result-file "$answers" --result-upload-file "$folder/answers_upload/$tag.json"
