#!/bin/sh
# VQAv2 test-dev: vqav2.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
