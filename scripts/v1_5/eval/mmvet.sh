#!/bin/sh
# MM-Vet: mmvet.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
