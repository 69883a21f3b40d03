#!/bin/sh
# MME: mme.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
