#!/usr/bin/env bash
# Makes the pictures that README.md shows, by the commands that stand beside them there.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=docs/samples
make() { # NAME COMMAND…: the first clip as NAME.gif
    local name=$1 draft
    draft=$(mktemp -d)
    shift
    "$@" --out "$draft"
    cp "$draft"/*-00.gif "$out/$name.gif"
    [ "$name" = generate ] && cp "$draft/generate.png" "$out/generate.png"
    rm -r "$draft"
}
make generate video-diffusion generate
make predict video-diffusion predict --from-dataset 3 --given 5 --history-guidance 2
make interpolate video-diffusion interpolate --from-dataset 3 --history-guidance 2
make text video-diffusion generate --prompt "the digit 3 moves right" --num-videos 1 --sampler dpm++ --steps 20
make long video-diffusion generate --num-frames 60 --num-videos 1 --sampler dpm++ --steps 20
make text-long video-diffusion generate --prompt "the digit 3 moves right" --num-frames 60 --num-videos 1 --sampler dpm++ --steps 20
