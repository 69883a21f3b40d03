#!/bin/sh
# Stage 1 of the first LLaVA: recipes/llava_pretrain.yaml; options of the recipe may follow, as --run.output_dir DIR.
exec sh "$(dirname "$0")/launch.sh" llava_pretrain "$@"
