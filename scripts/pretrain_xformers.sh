#!/bin/sh
# Stage 1 of the first LLaVA without bfloat16: recipes/llava_pretrain_xformers.yaml; options of the recipe may follow, as --run.output_dir DIR.
exec sh "$(dirname "$0")/launch.sh" llava_pretrain_xformers "$@"
