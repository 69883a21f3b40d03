#!/bin/sh
# Stage 2 (projector and language model): recipes/finetune_internvit6b_224to336_vicuna7b.yaml; options of the recipe may follow, as --run.output_dir DIR.
exec sh "$(dirname "$0")/../scripts/launch.sh" finetune_internvit6b_224to336_vicuna7b "$@"
