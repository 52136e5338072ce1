#!/usr/bin/env bash
# Classic Moving MNIST, 20 frames, every task and text, from one checkpoint: one data-centre GPU.
# Not yet run on one. `SCALE=tiny-cpu` runs the same on two CPU cores with a small network.
. "$(dirname "$0")/common.sh"
SCALE=${SCALE:-moving-mnist}
few=() # a CPU measures fewer clips; the reports say how many
if [ "$SCALE" = tiny-cpu ]; then few=(--num-videos 128); fi

train "$SCALE" "$SCALE" "$@"
evaluate "$SCALE" --protocol paper --sampler dpm++ --steps 20 ${few[@]+--num-videos 256}
evaluate "$SCALE" --protocol openstl --sampler dpm++ --steps 20 "${few[@]}"
evaluate "$SCALE" --protocol unconditional --sampler dpm++ --steps 20 "${few[@]}"
evaluate "$SCALE" --protocol text --sampler dpm++ --steps 20 "${few[@]}"
finish "$SCALE"
