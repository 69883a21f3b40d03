# Sourced by the benchmark scripts beside it: SCRIPT.sh CHECKPOINT [OPTION ...], run where the data is.
#
# From the environment, all optional: DATA (./playground/data/eval), CUDA_VISIBLE_DEVICES (0 to 7; one process
# each where a benchmark is large), PYTHON (python). OPTIONs go to the command that answers, as --load-4bit.
set -eu
if [ $# -lt 1 ]; then
    echo "usage: $0 CHECKPOINT [OPTION ...]" >&2
    exit 2
fi
checkpoint=$1
shift
tag=$(basename "$checkpoint")
data=${DATA:-./playground/data/eval}
python=${PYTHON:-python}
root=${root:-$(cd "$(dirname "$0")/../.." && pwd)}
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH

# answer MODULE QUESTIONS IMAGES ANSWERS [OPTION ...]
answer() {
    module=$1 questions=$2 images=$3 answers=$4
    shift 4
    "$python" -m "llava.eval.$module" --model-path "$checkpoint" --question-file "$questions" \
        ${images:+--image-folder "$images"} --answers-file "$answers" --temperature 0 --conv-mode vicuna_v1 "$@"
}

# run_chunks MODULE QUESTIONS IMAGES FOLDER [OPTION ...]: one process a GPU; FOLDER/N_K.jsonl has chunk K of N.
run_chunks() {
    module=$1 questions=$2 images=$3 folder=$4
    shift 4
    count_chunks
    pids='' index=0
    for gpu in $gpus; do
        CUDA_VISIBLE_DEVICES=$gpu answer "$module" "$questions" "$images" \
            "$folder/${chunks}_$index.jsonl" --num-chunks "$chunks" --chunk-idx "$index" "$@" &
        pids="$pids $!"
        index=$((index + 1))
    done
    failed=0
    for pid in $pids; do
        wait "$pid" || failed=1
    done
    if [ "$failed" = 1 ]; then
        echo "a chunk failed; the same command goes on with what is missing" >&2
        exit 1
    fi
}

# count_chunks: sets gpus and chunks from CUDA_VISIBLE_DEVICES.
count_chunks() {
    gpus=$(echo "${CUDA_VISIBLE_DEVICES:-0,1,2,3,4,5,6,7}" | tr ',' ' ')
    chunks=$(($(echo "$gpus" | wc -w)))
}

# merge_chunks FOLDER TARGET: all answers in order, of as many chunks as there are GPUs.
merge_chunks() {
    count_chunks
    index=0
    : >"$2.part"
    while [ "$index" -lt "$chunks" ]; do
        cat "$1/${chunks}_$index.jsonl" >>"$2.part"
        index=$((index + 1))
    done
    mv "$2.part" "$2"
}

# answer_in_chunks QUESTIONS IMAGES FOLDER [OPTION ...]: FOLDER/merge.jsonl has all answers.
answer_in_chunks() {
    run_chunks model_vqa_loader "$@"
    merge_chunks "$3" "$3/merge.jsonl"
}
