#!/bin/sh
# Stage 2 of the first LLaVA: recipes/llava_finetune.yaml; options of the recipe may follow, as --run.output_dir DIR.
exec sh "$(dirname "$0")/launch.sh" llava_finetune "$@"
