#!/usr/bin/env bash
# Ten minutes of one GPU, the most important first; what is done when time ends stays in OUT:
#   benchmarks/gpu.sh OUT
# (a) tests that need CUDA, and what each technique costs a step; (b, c) ResNet-18 dense, then pqd at
# 90 % sparsity; (d) seeds of the paper's setting, six orders and the single techniques each. More
# settings for every run follow OUT; on a machine without a GPU, to see that it works:
#   BATCH=8 ROUNDS=2 benchmarks/gpu.sh /tmp/gpu budget=0.02 dataset.train_limit=256 backbone=resnet8
set -uo pipefail
out=${1:?usage: gpu.sh OUT [SETTING...]}
shift
mkdir -p "$out"
python=${PYTHON:-python3}
settings=(logger=none cache.dir="$out/cache" "$@")

say() { echo "== $(date +%T) $*" | tee -a "$out/log"; }
run() { say "$*"; "$@" >>"$out/log" 2>&1 || say "failed: $?"; }

run "$python" -m pytest -q tests/test_devices.py tests/test_data_batches.py tests/test_training*.py
for backbone in resnet18 wrn28_10; do
  run "$python" benchmarks/training.py ratios --backbone "$backbone" --compile true \
    --batch-size "${BATCH:-512}" --rounds "${ROUNDS:-10}"
done
run "$python" train.py experiment=gpu order=pqd hydra.run.dir="$out/resnet18" "${settings[@]}"
for seed in 0 1 2 3 4 5; do
  run "$python" train.py -m experiment=paper seed="$seed" hydra.sweep.dir="$out/paper$seed" \
    train.batch_size=512 'runtime.threads=[1]' runtime.min_seconds=0.5 "${settings[@]}"
done
