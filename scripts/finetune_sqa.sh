#!/bin/sh
# The first LLaVA on ScienceQA: recipes/llava_finetune_sqa.yaml; options of the recipe may follow, as --run.output_dir DIR.
exec sh "$(dirname "$0")/launch.sh" llava_finetune_sqa "$@"
