#!/usr/bin/env bash
# The main job, end to end, with the bundled model: engines of all sizes, parity, latency, a picture.
# usage: benchmarks/demo.sh BIN OUT [BACKEND]
set -euo pipefail
bin=$1
out=$2
backend=${3:-onnxruntime}
photograph=$(dirname "$0")/../qvae_trt/data/pictures/astronaut.jpg
engines=$out/engines
common=(--model bundled:tiny --backend "$backend" --engine-dir "$engines")

step() {
  printf '\n\033[1m== %s\033[0m\n' "$1"
  shift
  printf '$ qvae %s\n' "$*"
  "$bin/qvae" "$@"
}

mkdir -p "$out"
step "what this machine can do" doctor --engine-dir "$engines"
step "engines of the seven aspect ratios" build --mode static "${common[@]}"
step "and of a size of one's own" build --mode static --resolution 512x512 "${common[@]}"
step "one engine pair with the nine profiles" build --mode profiles "${common[@]}"
case $backend in tensorrt | onnxruntime)
  step "the folder that LightX2V's own loader opens" lightx2v --engine-dir "$engines" \
    --backend "$backend" --out "$out/lightx2v" ;;
esac
step "every engine against PyTorch fp32" verify "${common[@]}" --out "$out"
step "PyTorch against the engines" bench --resolution 512x512 --resolution 848x480 \
  "${common[@]}" --out "$out"
step "a photograph, and its round trip beside it" roundtrip "$photograph" "${common[@]}" \
  --side-by-side --out "$out/roundtrip.png"

printf '\n\033[1m== in %s\033[0m\n' "$out"
cat <<END
  engines/                         every engine with its sidecar (.json)
    static/1664x928/ ...             one pair for each of the seven sizes
    static/512x512/                  one pair of a size of one's own
    profiles/                        one pair with the nine profiles
  lightx2v/                        links to them under LightX2V's names
  parity.md, parity.json           every engine against PyTorch fp32, and the bounds kept
  latency.md, .json, .csv, .svg    PyTorch against the engines
  roundtrip.png                    left the original, right the same through bundled:tiny
END
