#!/bin/sh
# Stage 2 on a mixture of data sets, under Slurm, one task for each GPU; options of the recipe may follow.
#
# From the environment, all optional: GPUS (128), GPUS_PER_NODE (8), CPUS_PER_TASK (10), PARTITION, SRUN_ARGS,
# MODEL and META (in place of the recipe's), PYTHON (python).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
recipe="$root/recipes/finetune_internvit6b_224to336_vicuna13b_custom_data.yaml"
gpus=${GPUS:-128}
per_node=${GPUS_PER_NODE:-8}

PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
set -- "$recipe" ${MODEL:+"--model.path=$MODEL"} ${META:+"--data.meta=$META"} "$@"
case " $* " in
*" --dry-run "*) exec "${PYTHON:-python}" -m llava.cli train --nproc "$gpus" "$@" ;;
esac
command -v srun >/dev/null || {
    echo "srun is not here. Start it on a Slurm cluster; without one: GPUS=8 $root/scripts/launch.sh $(basename "$recipe" .yaml)" >&2
    exit 2
}
# SRUN_ARGS is a list of options: it is to be split.
# shellcheck disable=SC2086
exec srun ${PARTITION:+-p "$PARTITION"} --gres="gpu:$per_node" --nodes=$((gpus / per_node)) --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-10}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u -m llava.cli train --log "$@"
