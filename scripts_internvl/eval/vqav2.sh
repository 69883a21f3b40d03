#!/bin/sh
# VQAv2 test-dev: answers, then the file for the server.
. "$(dirname "$0")/common.sh"

split=llava_vqav2_mscoco_test-dev2015
answer_in_chunks "$data/vqav2/$split.jsonl" "$data/vqav2/test2015" "$data/vqav2/answers/$split/$tag" "$@"
"$python" "$root/scripts/convert_vqav2_for_submission.py" --dir "$data/vqav2" --split "$split" --ckpt "$tag"
