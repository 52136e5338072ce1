#!/usr/bin/env bash
# Goes on with stochastic Moving MNIST from `smmnist`: an adapter, merged in the end. Most clips have given frames, as in
# MCVD's protocol. Two CPU cores with bfloat16; without it, a step takes several times as long.
#
#   BASE=smmnist    the pipeline to go on from
#   MAX_MINUTES=52  the time of the training; the rate falls to zero in its last third
#   ADAPT="..."     how a training is started, as TRAIN in common.sh
. "$(dirname "$0")/common.sh"
BASE=${BASE:-smmnist}
ADAPT=${ADAPT:-video-diffusion train-lora}
minutes=${MAX_MINUTES:-52}

[ -f "$OUT/smmnist-adapt/model_index.json" ] ||
    $ADAPT --pretrained_model_name_or_path "$BASE" --output_dir "$OUT/smmnist-adapt" --seed 1 \
        --max_minutes "$minutes" --cooldown_minutes $((minutes / 3)) ${PART_MINUTES:+--part_minutes "$PART_MINUTES"} \
        --lora_rank 64 --merged --weight_decay 0 --learning_rate 1e-3 --ema_decay 0.98 --max_steps 100000 \
        --lr_scheduler constant_with_warmup --warmup_steps 20 --per_device_batch_size 8 --num_frames 15 \
        --mask_probabilities 0.15 0.65 0.1 0.1 --caption_dropout 0.5 --validation_steps 0 --sample_steps 0 \
        --mixed_precision bf16 --compile True "$@"
evaluate smmnist-adapt --protocol mcvd
finish smmnist-adapt
