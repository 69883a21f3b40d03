#!/bin/sh
# MMBench-CN dev: answers, then the table for the server.
. "$(dirname "$0")/common.sh"

split=mmbench_dev_cn_20231003
folder=$data/mmbench_cn
answer model_vqa_mmbench "$folder/$split.tsv" "" "$folder/answers/$split/$tag.jsonl" --lang cn --single-pred-prompt "$@"
"$python" "$root/scripts/convert_mmbench_for_submission.py" --annotation-file "$folder/$split.tsv" \
    --result-dir "$folder/answers/$split" --upload-dir "$folder/answers_upload/$split" --experiment "$tag"
