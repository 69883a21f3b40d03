#!/bin/sh
# ScienceQA: sqa.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
