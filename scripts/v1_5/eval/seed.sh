#!/bin/sh
# SEED-Bench: seed.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
