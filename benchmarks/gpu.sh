#!/usr/bin/env bash
# Every check and measurement that needs a GPU, on one machine with PyTorch and no network, in about ten minutes:
#
#     benchmarks/gpu.sh [FOLDER]     leaves DATE-gpu.md in FOLDER (default benchmarks/results), its numbers and pictures beside it
#
# The limits add up to 560 s, and 90 for serving, which needs the wheel nvidia-pytriton. ONNX Runtime is timed on
# the GPU where onnxruntime-gpu is. A part that fails or runs out of time does not stop the others: the report and the
# exit status tell.
set -uo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/results}")
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
prefix=$out/$(date -u +%F)-gpu
vit=vit_base_patch16_224
table=$'| part | exit status | seconds | limit |\n|---|--:|--:|--:|'
names=()
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0

part() { # part NAME SECONDS ARGUMENT...: run Python within the time; its log, and the report if it makes one, are kept
    local name=$1 limit=$2 began=$SECONDS code
    shift 2
    timeout --kill-after=5 "$limit" "$python" "$@" >"$prefix-$name.log" 2>&1
    code=$?
    tail -n 40 "$prefix-$name.log"
    echo "== $name: exit $code after $((SECONDS - began)) s of $limit"
    table+=$'\n'"| $name | $code | $((SECONDS - began)) | $limit |"
    names+=("$name")
    [ "$code" -eq 0 ] || status=1
}

part tests 75 -m pytest -q -m gpu tests/gpu -p no:cacheprovider
part inference 130 -m benchmarks.inference --device cuda --backbone "$vit" --seconds 0.2 --call-limit 0.2 --processes 1 \
    --sizes 224 448 512 --batches 1 8 32 --backends eager-fp32 eager-tf32 eager-bf16 eager-fp16 graph-bf16 graph-fp16 \
    graph-compiled-fp16 ort-fp32 ort-fp16 tensorrt-fp16 tensorrt-rtx-fp16 --report "$prefix-inference"
part convergence 190 -m benchmarks.convergence --out "$work" --backbone "$vit" --steps 800 --workers "$(nproc)" \
    --train-flags "--cuda_graph true" --report "$prefix-convergence"
part training-vit-b 120 -m benchmarks.training_step --device cuda --backbone "$vit" --size 448 --batch 4 --repeats 8 --processes 1 \
    --variants plain-materialised-fp32 plain-fp32 ours-fp32 ours-fp32-checkpointed ours-tf32 ours-bf16 ours-bf16-graph \
    ours-bf16-compiled-graph --report "$prefix-training-vit-b"
part training-demo 45 -m benchmarks.training_step --device cuda --backbone demo --repeats 8 --processes 1 \
    --variants plain-fp32 ours-fp32 ours-bf16 ours-bf16-graph --report "$prefix-training-demo"
if "$python" -c "import pytriton" 2>/dev/null; then
    part serving 90 -m benchmarks.serving --backbone "$vit" --repeats 20 --clients 1 8 32 --seconds 3 --processes 1 \
        --report "$prefix-serving"
fi

{
    printf '# What a GPU adds, %s\n\n`benchmarks/gpu.sh`\n\n%s\n' "$(date -u '+%F %H:%M UTC')" "$table"
    for name in "${names[@]}"; do
        printf '\n'
        if [ -f "$prefix-$name.md" ]; then # a report of its own: a chapter of this one
            sed 's/^#/##/' "$prefix-$name.md" && rm "$prefix-$name.md"
        else
            printf '## %s\n\n```\n%s\n```\n' "$name" "$(tail -n 12 "$prefix-$name.log")"
        fi
    done
} >"$prefix.md.part" && mv "$prefix.md.part" "$prefix.md"
echo "report: $prefix.md"
exit "$status"
