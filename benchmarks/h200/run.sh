#!/usr/bin/env bash
# Measures what lies in this folder, on the NVIDIA GPU of this machine.
# usage: benchmarks/h200/run.sh STEP...
#
# A step is stopped after LIMIT seconds (580). Called again it goes on: engines that are there are kept.
# On several GPUs: one step each, with CUDA_VISIBLE_DEVICES. Never build two engines on one GPU at once.
#
#   static-encoder, static-decoder       the engines of the seven sizes
#   profiles-encoder, profiles-decoder   the engines with nine profiles
#   bench-static, bench-others           latencies of the seven sizes, with --service; of the nine opts and three sizes
#                                        between them
#   compiled-static, compiled-others     the same sizes under torch.compile, by the Python that COMPILED names
#   layers                               every layer of the pair at 1328x1328
#   parity                               every engine against PyTorch fp32
#   footprint, soak                      memory and first use; 2,000 calls from four threads
#   gpu-engines, gpu-tests               the small engines of tests/gpu, and the tests
#   tables                               all latencies in one table, and a page of them
#
# Variables: QVAE (the command, "qvae"), PYTHON ("python3"; it must find qvae_trt), COMPILED ("$QVAE"), ENGINES ("engines"),
# OUT ("out/h200"), MODEL ("random:full"), BACKEND ("tensorrt"), SIZES and OTHERS (WxH ...), LIMIT (seconds).
set -euo pipefail

read -ra qvae <<< "${QVAE:-qvae}"
read -ra python <<< "${PYTHON:-python3}"
read -ra compiled <<< "${COMPILED:-${QVAE:-qvae}}"
engines=${ENGINES:-engines}
out=${OUT:-out/h200}
model=${MODEL:-random:full}
backend=${BACKEND:-tensorrt}
root=$(cd "$(dirname "$0")/../.." && pwd)

sizes() {  # --resolution WxH for each of the words
  local size
  for size in $1; do printf -- '--resolution\n%s\n' "$size"; done
}

own() { "${python[@]}" -c "from qvae_trt.profiles import *; print(*$1)"; }

[ $# -gt 0 ] || { echo "usage: $0 STEP...; its first lines name the steps" >&2; exit 2; }
SIZES=${SIZES:-$(own 'load_static_sizes().values()')}
# The opts of the nine profiles; then sizes that editing makes of a picture's aspect ratio, none of them an opt.
OTHERS=${OTHERS:-$(own '(p.opt for p in load_profiles())') 1248x832 1184x896 672x384}
mapfile -t static < <(sizes "$SIZES")
mapfile -t others < <(sizes "$OTHERS")
served=(--model "$model" --backend "$backend" --engine-dir "$engines")
alone=(--model "$model" --engine-dir "$out/no-engines" --baseline pytorch --baseline folded --baseline compiled)

run() {
  local code=0
  timeout "${LIMIT:-580}" "$@" || code=$?
  [ $code != 124 ] || echo "$0: stopped after ${LIMIT:-580} s; the same step goes on where it was" >&2
  return $code
}
build() { run "${qvae[@]}" build "${served[@]}" "$@"; }
bench() { run "${qvae[@]}" bench "${served[@]}" --baseline pytorch --baseline folded "$@"; }
compile() { run "${compiled[@]}" bench "${alone[@]}" "$@"; }

step() {
  case $1 in
    static-encoder | static-decoder) build --mode static --part "${1#*-}" "${static[@]}" ;;
    profiles-encoder | profiles-decoder) build --mode profiles --part "${1#*-}" ;;
    bench-static) bench "${static[@]}" --service --out "$out/static" ;;
    bench-others) bench "${others[@]}" --out "$out/others" ;;
    compiled-static) compile "${static[@]}" --out "$out/compiled-static" ;;
    compiled-others) compile "${others[@]}" --out "$out/compiled-others" ;;
    parity) run "${qvae[@]}" verify "${served[@]}" --out "$out/parity" ;;
    layers)
      for part in encoder decoder; do
        run "${python[@]}" "$root/benchmarks/h200/layers.py" "$engines/static/1328x1328/vae_$part.trt" --out "$out/layers_$part"
      done ;;
    footprint | soak)
      run "${python[@]}" "$root/benchmarks/h200/$1.py" --engine-dir "$engines" --model "$model" --out "$out/$1.json" ;;
    gpu-engines)
      local commands line
      commands=$("${python[@]}" "$root/tests/gpu/gpu_engines.py" "$engines/gpu")
      while IFS= read -r line; do
        eval "run \"\${qvae[@]}\" ${line#qvae }"
      done <<< "$commands" ;;
    gpu-tests)
      QVAE_GPU_ENGINES=$engines/gpu run "${python[@]}" -m pytest -m gpu -v "$root/tests/gpu" \
        "$root/tests/test_image_processor.py" "$root/tests/test_bench.py" | tee "$out/pytest.log" ;;
    tables)
      local results=() folder
      for folder in static others compiled-static compiled-others; do
        [ ! -e "$out/$folder/latency.json" ] || results+=("$out/$folder")
      done
      run "${qvae[@]}" report "${results[@]}" --merge "$out/all" --out "$out/report.html" ;;
    *) echo "$0: no step $1; its first lines name them" >&2; exit 2 ;;
  esac
}

mkdir -p "$out"
for name; do
  begun=$SECONDS
  step "$name"
  printf '== %s: %d s\n' "$name" $((SECONDS - begun)) >&2
done
