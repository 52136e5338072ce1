#!/usr/bin/env bash
# Stochastic Moving MNIST (SVG, MCVD), 15 frames: one data-centre GPU. Not yet run on one.
# `SCALE=tiny-cpu` runs the same on two CPU cores with a small network.
. "$(dirname "$0")/common.sh"
SCALE=${SCALE:-smmnist}
flags=() few=()
if [ "$SCALE" = tiny-cpu ]; then
    flags=(--variant stochastic --num_frames 15)
    few=(--num-videos 32 --num-samples 3)
fi

train "smmnist-$SCALE" "$SCALE" "${flags[@]}" "$@"
evaluate "smmnist-$SCALE" --protocol mcvd --sampler dpm++ --steps 20 "${few[@]}"
finish "smmnist-$SCALE"
