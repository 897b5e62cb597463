#!/usr/bin/env bash
# Measures what the folders beside this one hold, on the NVIDIA GPUs of this machine.
# usage: benchmarks/gpu/run.sh STEP...
#
# A step goes on where it stopped: what is there is kept. The same step may run on several GPUs at once, each with its
# CUDA_VISIBLE_DEVICES: they share its sizes. Never build two engines on one GPU at once, and measure on no GPU that builds.
#
#   all                                  every step below, on all GPUs
#   static-encoder, static-decoder       the engines of the seven sizes
#   profiles                             the engines with nine profiles
#   gpu-static, gpu-profiles             the small engines of tests/gpu
#   bench-encoder, bench-decoder         every path at every size: the seven static ones, the nine opts, four between them
#   service                              latents to PIL, first use and change of size, at the seven sizes
#   parity                               every engine at every size against PyTorch fp32
#   kernels                              each kernel of the fused path against its floor, its convolutions by width
#   first-use                            first uses of the fused path: of a process, of a size, after offload
#   layers                               every layer of the static pair at 1328x1328
#   attention                            forms of attention with ranges: planned memory, compiler or not, milliseconds
#   footprint, soak                      memory and first use; 2,000 calls from four threads
#   gpu-tests                            the tests that need a GPU
#   tables                               all latencies in one table, and a page of them
#
# Variables: QVAE (the command, "qvae"), PYTHON ("python3"; it must find qvae_trt), ENGINES ("engines"), OUT ("out/gpu"),
# MODEL ("random:full"), BACKEND ("tensorrt"), SIZES and OTHERS (WxH ...), GPUS (how many; default: all).
set -euo pipefail

read -ra qvae <<< "${QVAE:-qvae}"
read -ra python <<< "${PYTHON:-python3}"
engines=${ENGINES:-engines}
out=${OUT:-out/gpu}
model=${MODEL:-random:full}
backend=${BACKEND:-tensorrt}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

own() { "${python[@]}" -c "from qvae_trt.profiles import *; print(*$1)"; }

[ $# -gt 0 ] || { echo "usage: $0 STEP...; its first lines name the steps" >&2; exit 2; }
SIZES=${SIZES:-$(own 'load_static_sizes().values()')}
# The opts of the nine profiles; then sizes that editing makes of a picture's aspect ratio, none of them an opt.
OTHERS=${OTHERS:-$(own '(p.opt for p in load_profiles())') 1376x768 1184x896 1248x832 672x384}
read -ra static <<< "$SIZES"
read -ra others <<< "$OTHERS"
forms=(static package package-10 package-14 keys-as-they-are seven fourteen twenty-eight one-zero half-centre no-centre half-centre-inter unpadded unpadded-inter select whole scan barrier half-centre-barrier half-centre-inter-barrier)
served=(--model "$model" --backend "$backend" --engine-dir "$engines")

failed=0
once() {  # once NAME COMMAND...: unless it is done, or being done on another GPU; others go on if it fails
  local name=$1 mark
  shift
  mark=$out/done/${name//\//-}
  mkdir -p "$out/done"
  (
    flock -n 9 || exit 0
    [ ! -s "$mark" ] || exit 0
    "$@" && date -u +%FT%TZ > "$mark"
  ) 9>> "$mark" || { printf '== %s failed\n' "$name" >&2; failed=1; }
}
build() { "${qvae[@]}" build "${served[@]}" "$@"; }
bench() {  # bench PART
  local size
  for size in "${static[@]}" "${others[@]}"; do
    once "bench/$1-$size" "${qvae[@]}" bench "${served[@]}" --part "$1" --resolution "$size" --out "$out/bench/$1-$size"
  done
}
lines() { while IFS= read -r line; do eval "${qvae[*]} ${line#qvae }"; done; }
named() { local size; for size in "${static[@]}"; do printf -- '--resolution\n%s\n' "$size"; done; }

step() {
  local size part
  case $1 in
    static-encoder | static-decoder) mapfile -t sizes < <(named); build --mode static --part "${1#*-}" "${sizes[@]}" ;;
    profiles) build --mode profiles ;;
    gpu-static | gpu-profiles)
      "${python[@]}" "$root/tests/gpu/gpu_engines.py" "$engines/gpu" | grep -- "--mode ${1#*-}" | lines ;;
    bench-encoder | bench-decoder) bench "${1#*-}" ;;
    service)
      mapfile -t sizes < <(named)
      once service "${qvae[@]}" bench "${served[@]}" --part decoder --service --baseline pytorch --baseline folded \
        --baseline fused "${sizes[@]}" --out "$out/service" ;;
    parity)
      for size in "${static[@]}" "${others[@]}"; do
        once "parity/$size" "${qvae[@]}" verify "${served[@]}" --resolution "$size" --out "$out/parity/$size"
      done ;;
    kernels)
      once kernels "${python[@]}" "$here/kernels.py" --out "$out/kernels"
      once convolutions "${python[@]}" "$here/convolutions.py" --out "$out/convolutions.json" ;;
    first-use)
      once first-use-cold env TRITON_CACHE_DIR="$out/triton" "${python[@]}" "$here/first_use.py" --out "$out/first_use_cold.json"
      once first-use-warm env TRITON_CACHE_DIR="$out/triton" "${python[@]}" "$here/first_use.py" --out "$out/first_use_warm.json" ;;
    layers)
      for part in encoder decoder; do
        once "layers/$part" "${python[@]}" "$here/layers.py" "$engines/static/1328x1328/vae_$part.trt" --out "$out/layers_$part"
      done ;;
    attention)
      local form
      for form in "${forms[@]}"; do
        once "attention/$form" "${python[@]}" "$here/attention_memory.py" --backend "$backend" --forms "$form" \
          --out "$out/attention"
      done ;;
    footprint | soak)
      once "$1" "${python[@]}" "$here/$1.py" --engine-dir "$engines" --model "$model" --out "$out/$1.json" ;;
    gpu-tests)
      QVAE_GPU_ENGINES=$engines/gpu "${python[@]}" -m pytest -m gpu -v "$root/tests/gpu" \
        "$root/tests/runtime/test_runtime_image_processor.py" "$root/tests/bench/test_bench_run.py" | tee "$out/pytest.log" ;;
    tables)
      mapfile -t results < <(find "$out/bench" "$out/service" -name latency.json -printf '%h\n' 2> /dev/null | sort)
      "${qvae[@]}" report "${results[@]}" --merge "$out/all" --out "$out/report.html" ;;
    all)
      on_gpus profiles static-encoder static-decoder gpu-static gpu-profiles
      on_gpus bench-decoder bench-encoder parity attention
      on_gpus gpu-tests service footprint soak kernels first-use layers
      step tables ;;
    *) echo "$0: no step $1; its first lines name them" >&2; exit 2 ;;
  esac
}

on_gpus() {  # on_gpus STEP...: each GPU takes the next step that is left; those that share their sizes run on all
  local count gpu name
  count=${GPUS:-$("${python[@]}" -c 'import torch; print(torch.cuda.device_count())')}
  for ((gpu = 0; gpu < count; gpu++)); do
    (
      export CUDA_VISIBLE_DEVICES=$gpu
      for name; do
        case $name in
          bench-* | parity | attention) "$0" "$name" ;;
          *) once "step/$name" "$0" "$name" ;;
        esac || echo "$0: $name failed" >&2
      done
    ) &
  done
  wait
}

mkdir -p "$out"
for name; do
  begun=$SECONDS
  step "$name"
  printf '== %s: %d s\n' "$name" $((SECONDS - begun)) >&2
done
exit "$failed"
