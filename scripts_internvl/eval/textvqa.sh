#!/bin/sh
# TextVQA with OCR tokens: answers, then the accuracy.
. "$(dirname "$0")/common.sh"

answers=$data/textvqa/answers/$tag.jsonl
answer model_vqa_loader "$data/textvqa/llava_textvqa_val_v051_ocr.jsonl" "$data/textvqa/train_images" "$answers" "$@"
"$python" -m llava.eval.eval_textvqa --annotation-file "$data/textvqa/TextVQA_0.5.1_val.json" --result-file "$answers"
