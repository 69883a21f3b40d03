#!/bin/sh
# GQA testdev: gqa.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
