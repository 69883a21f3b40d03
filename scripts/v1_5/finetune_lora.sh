#!/bin/sh
# Stage 2 of LLaVA-1.5 by adapters: recipes/llava_v1_5_finetune_lora.yaml; options of the recipe may follow, as --run.output_dir DIR.
exec sh "$(dirname "$0")/../launch.sh" llava_v1_5_finetune_lora "$@"
