#!/usr/bin/env bash
# Every check and measurement that needs a GPU, on one machine with PyTorch and no network, in under nine minutes:
#
#     benchmarks/gpu.sh [FOLDER]     reports go there as gpu-WHAT-DATE.md, .json and pictures (default benchmarks/results)
#
# The limits add up to 515 s, of which serving, which needs the wheel nvidia-pytriton, takes 60. A part that fails or runs out of time does not stop the others; the exit status tells.
set -uo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/results}")
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
date=$(date -u +%F)
vit=vit_base_patch16_224
status=0

part() { # part NAME SECONDS COMMAND...: run one part within its time, keep its log beside the reports
    local name=$1 limit=$2 began=$SECONDS code
    shift 2
    timeout --kill-after=5 "$limit" "$@" >"$out/gpu-$name-$date.log" 2>&1
    code=$?
    tail -n 40 "$out/gpu-$name-$date.log"
    echo "== $name: exit $code after $((SECONDS - began)) s of $limit"
    [ "$code" -eq 0 ] || status=1
}

part tests 75 "$python" -m pytest -q -m gpu tests/gpu -p no:cacheprovider
part training-vit-b 150 "$python" -m benchmarks.training_step --device cuda --backbone "$vit" --size 448 --batch 4 \
    --repeats 10 --report "$out/gpu-training-vit-b-$date"
part training-demo 60 "$python" -m benchmarks.training_step --device cuda --backbone demo --repeats 10 \
    --report "$out/gpu-training-demo-$date"
part inference 120 "$python" -m benchmarks.inference --device cuda --backbone "$vit" --seconds 0.3 \
    --sizes 224 448 512 768 --batches 1 8 32 \
    --backends eager-fp32 eager-tf32 eager-bf16 eager-fp16 graph-fp16 compiled-fp16 graph-compiled-fp16 \
    tensorrt-fp16 tensorrt-rtx-fp16 --report "$out/gpu-inference-$date"
part inference-onnx 50 "$python" -m benchmarks.inference --device cuda --backbone "$vit" --sizes 448 --batches 1 \
    --backends eager-fp32 ort-fp32 --seconds 2 --report "$out/gpu-inference-onnx-$date"
if "$python" -c "import pytriton" 2>/dev/null; then
    part serving 60 "$python" -m benchmarks.serving --backbone "$vit" --repeats 20 --clients 1 8 32 --seconds 3 \
        --report "$out/gpu-serving-$date"
fi
exit "$status"
