#!/bin/sh
# MMBench dev: mmbench.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
