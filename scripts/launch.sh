#!/bin/sh
# scripts/launch.sh RECIPE [OPTION ...]: train by recipes/RECIPE.yaml on GPUS devices of NNODES machines.
#
# From the environment, all optional: GPUS (8), NNODES (1), NODE_RANK (0), MASTER_ADDR (with several machines),
# MASTER_PORT or PORT, MODEL and DATA (in place of the recipe's), PYTHON (python).
# Output also goes to train.log in the output folder; the exit code is the training's own.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
recipe="$root/recipes/$1.yaml"
shift

port=${MASTER_PORT:-${PORT:-}}
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
exec "${PYTHON:-python}" -m llava.cli train "$recipe" --log \
    --nproc "${GPUS:-8}" --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" \
    ${MASTER_ADDR:+--master_addr "$MASTER_ADDR"} ${port:+--master_port "$port"} \
    ${MODEL:+"--model.path=$MODEL"} ${DATA:+"--data.path=$DATA"} "$@"
