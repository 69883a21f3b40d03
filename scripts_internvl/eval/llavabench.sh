#!/bin/sh
# LLaVA-Bench (in the wild): answers, a judge's reviews of them, then the summary.
#
# JUDGE has the options of the review, as "--judge-url URL --judge-model NAME" (docs/judge.md).
. "$(dirname "$0")/common.sh"

folder=$data/llava-bench-in-the-wild
answer model_vqa "$folder/questions.jsonl" "$folder/images" "$folder/answers/$tag.jsonl" "$@"
mkdir -p "$folder/reviews"
# shellcheck disable=SC2086
"$python" -m llava.eval.eval_gpt_review_bench --question "$folder/questions.jsonl" \
    --context "$folder/context.jsonl" --answer-list "$folder/answers_gpt4.jsonl" "$folder/answers/$tag.jsonl" \
    --output "$folder/reviews/$tag.jsonl" ${JUDGE:-}
"$python" -m llava.eval.summarize_gpt_review -f "$folder/reviews/$tag.jsonl"
