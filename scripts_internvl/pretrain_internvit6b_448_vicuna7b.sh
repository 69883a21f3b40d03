#!/bin/sh
# Stage 1 (the projector): recipes/pretrain_internvit6b_448_vicuna7b.yaml; options of the recipe may follow, as --run.output_dir DIR.
exec sh "$(dirname "$0")/../scripts/launch.sh" pretrain_internvit6b_448_vicuna7b "$@"
