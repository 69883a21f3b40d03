#!/bin/sh
# POPE: pope.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
