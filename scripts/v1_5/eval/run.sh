# Sourced by the scripts beside it: runs that of the same name in scripts_internvl/eval, whose options these are.
# Without a checkpoint it is LLaVA-1.5 13B, and one GPU where CUDA_VISIBLE_DEVICES is not set, as originally.
set -eu
[ $# -gt 0 ] || set -- liuhaotian/llava-v1.5-13b
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
export CUDA_VISIBLE_DEVICES
exec sh "$(dirname "$0")/../../../scripts_internvl/eval/$(basename "$0")" "$@"
