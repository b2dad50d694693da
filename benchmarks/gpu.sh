#!/usr/bin/env bash
# Everything that is worth measuring on a machine with an NVIDIA GPU, unattended, from a checkout:
#   benchmarks/gpu.sh [FOLDER]              results/gpu if none is named
#   REHEARSE=1 benchmarks/gpu.sh [FOLDER]   the same on the CPU, small and quick
# It can be stopped, and goes on where it was. What it needs is installed into FOLDER: exporting needs
# onnxruntime for the CPU, the run itself onnxruntime for the GPU, and they exclude each other.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-results/gpu}" && cd "${1:-results/gpu}" && pwd)
python=${PYTHON:-python3}
rehearse=${REHEARSE:-}

environment() { # FOLDER EXTRAS [PACKAGES]: made once
  [ -e "$1/installed" ] && return
  "$python" -m venv "$1"
  "$1/bin/python" -m pip --disable-pip-version-check --quiet install -c constraints.txt -e ".[$2]" "${@:3}"
  touch "$1/installed"
}

if [ ! -e "$out/model/manifest.json" ]; then
  exporter=${EXPORTER_VENV:-$out/exporter}
  [ -n "${EXPORTER_VENV:-}" ] || environment "$exporter" cpu,exporter
  [ -e "$out/checkpoint/config.json" ] || "$exporter/bin/python" -m benchmarks.gpu.checkpoint "$out/checkpoint"
  "$exporter/bin/mapseek" export "$out/checkpoint" --precision fp16 --name vit-b32-random --out "$out/model"
fi

if [ -n "$rehearse" ]; then
  runner=${RUNNER_VENV:-$out/runner}
  [ -n "${RUNNER_VENV:-}" ] || environment "$runner" cpu,bench
  exec "$runner/bin/mapseek" bench gpu --model "$out/model" --provider cpu --out "$out/report" \
    --rounds 1 --seconds 1 --batch 1 --batch 4
fi

environment "$out/runner" gpu,bench 'onnxruntime-gpu[cuda,cudnn]'
# Without it only the steps with TensorRT fail, and say so.
"$out/runner/bin/python" -m pip --disable-pip-version-check --quiet install 'tensorrt-cu12>=10,<11' ||
  echo "TensorRT cannot be installed here" >&2
libraries=$("$out/runner/bin/python" -c 'import sysconfig, pathlib
found = pathlib.Path(sysconfig.get_path("purelib"))
print(":".join(str(one) for one in [*found.glob("tensorrt_libs"), *found.glob("nvidia/*/lib")]))')
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$out/runner/bin/mapseek" bench gpu --model "$out/model" --provider cuda --provider tensorrt \
  --out "$out/report"
