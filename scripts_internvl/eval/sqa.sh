#!/bin/sh
# ScienceQA: answers, then the accuracy over all questions and over those with a picture.
. "$(dirname "$0")/common.sh"

folder=$data/scienceqa
answers=$folder/answers/$tag.jsonl
answer model_vqa_science "$folder/llava_test_CQM-A.json" "$folder/images/test" "$answers" --single-pred-prompt "$@"
"$python" -m llava.eval.eval_science_qa --base-dir "$folder" --result-file "$answers" \
    --output-file "$folder/answers/${tag}_output.jsonl" --output-result "$folder/answers/${tag}_result.json"
