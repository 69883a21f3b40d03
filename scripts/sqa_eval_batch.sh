#!/bin/sh
# The first LLaVA on ScienceQA: sqa_eval_batch.sh CHECKPOINT [OPTION ...]; sqa_eval_gather.sh goes on from there.
# The questions are those that scripts/convert_sqa_to_llava.py writes; variables: scripts_internvl/eval/common.sh.
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts_internvl/eval/common.sh"

folder=$data/scienceqa
run_chunks model_vqa_science "$folder/llava_test_QCM-LEA.json" "$folder/images/test" "$folder/answers/$tag" \
    --conv-mode llava_v1 "$@"
