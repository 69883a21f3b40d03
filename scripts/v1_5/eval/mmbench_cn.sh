#!/bin/sh
# MMBench-CN dev: mmbench_cn.sh [CHECKPOINT [OPTION ...]].
. "$(dirname "$0")/run.sh"
