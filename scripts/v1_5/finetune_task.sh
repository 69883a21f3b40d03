#!/bin/sh
# LLaVA-1.5 trained on: recipes/llava_v1_5_finetune_task.yaml; options of the recipe may follow, as --run.output_dir DIR.
exec sh "$(dirname "$0")/../launch.sh" llava_v1_5_finetune_task "$@"
