#!/bin/sh
# VizWiz test: vizwiz.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
