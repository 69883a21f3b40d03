#!/bin/sh
# Stage 2 of the first LLaVA by adapters over 4 bits: recipes/llava_finetune_qlora.yaml; options of the recipe may follow, as --run.output_dir DIR.
exec sh "$(dirname "$0")/launch.sh" llava_finetune_qlora "$@"
