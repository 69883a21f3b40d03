#!/bin/sh
# LLaVA-Bench (in the wild): llavabench.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
