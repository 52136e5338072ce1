#!/usr/bin/env bash
# Stochastic Moving MNIST (SVG, MCVD), 15 frames: one data-centre GPU. Not yet run on one.
# `SCALE=tiny-cpu` runs the same on two CPU cores; the checkpoint in pipelines/smmnist started from the third of the other, with
# `--pretrained_model_name_or_path moving-mnist --seed 3 --max_steps 750 --per_device_batch_size 8 --learning_rate 0.002
# --warmup_steps 50 --cooldown_steps 350 --compile True`.
. "$(dirname "$0")/common.sh"
SCALE=${SCALE:-smmnist}
flags=() few=()
if [ "$SCALE" = tiny-cpu ]; then
    flags=(--variant stochastic --num_frames 15)
    few=(--num-videos 32 --num-samples 3)
fi

train "smmnist-$SCALE" "$SCALE" "${flags[@]}" "$@"
evaluate "smmnist-$SCALE" --protocol mcvd --sampler dpm++ --steps 10 --history-guidance 2 "${few[@]}"
finish "smmnist-$SCALE"
