#!/usr/bin/env bash
# Makes the pictures of README.md and docs/ by these commands: the first clip of each as NAME.gif.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=docs/samples
make() { # NAME COMMAND…
    local name=$1 draft
    draft=$(mktemp -d)
    shift
    "$@" --out "$draft"
    cp "$draft"/*-00.gif "$out/$name.gif"
    [ "$name" = generate ] && cp "$draft/generate.png" "$out/generate.png"
    [ "$name" = predict ] && cp "$draft/predict.png" "$out/predict.png"
    rm -r "$draft"
}
python docs/samples/hero.py
make generate video-diffusion generate
make predict video-diffusion predict --from-dataset 3 --given 5
make interpolate video-diffusion interpolate --from-dataset 3
make text video-diffusion generate --model moving-mnist-text --prompt "the digit 3 moves right" --num-videos 1
make long video-diffusion generate --num-frames 60 --num-videos 1
make text-long video-diffusion generate --model moving-mnist-text --prompt "the digit 3 moves right" --num-frames 60 --num-videos 1
