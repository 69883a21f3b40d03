#!/bin/sh
# TextVQA: textvqa.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
