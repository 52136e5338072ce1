#!/usr/bin/env bash
# Teaches a pipeline to obey prompts: two adapters, one after the other, each merged. Many short clips first, for they
# say as much of a caption as long ones and cost less; then a few whole ones. Two CPU cores, under an hour.
#
#   BASE=moving-mnist  the pipeline to go on from
#   ADAPT="..."        how a training is started, as TRAIN in common.sh
. "$(dirname "$0")/common.sh"
BASE=${BASE:-moving-mnist}
ADAPT=${ADAPT:-video-diffusion train-lora}
common=(--lora_rank 64 --lora_text_encoder --merged --weight_decay 0 --max_steps 100000
    --lr_scheduler constant_with_warmup --warmup_steps 10 --validation_steps 0 --sample_steps 0 --compile True)

adapt() { # NAME BASE MINUTES COOLDOWN FLAGS…
    local name=$1 base=$2 minutes=$3 cooldown=$4
    shift 4
    [ -f "$OUT/$name/model_index.json" ] && return
    $ADAPT --pretrained_model_name_or_path "$base" --output_dir "$OUT/$name" --max_minutes "$minutes" \
        --cooldown_minutes "$cooldown" ${PART_MINUTES:+--part_minutes "$PART_MINUTES"} "${common[@]}" "$@"
}

adapt prompts-short "$BASE" 38 8 --num_frames 4 --per_device_batch_size 16 --learning_rate 1e-3 --seed 1 \
    --mask_probabilities 0.9 0.1 0 0 --caption_dropout 0.1 --ema_decay 0.98 "$@"
adapt prompts "$OUT/prompts-short" 15 8 --num_frames 20 --per_device_batch_size 4 --learning_rate 3e-4 --seed 2 \
    --mask_probabilities 0.65 0.2 0.1 0.05 --caption_dropout 0.25 --ema_decay 0.97 "$@"
evaluate prompts --protocol text --num-videos 24 --guidance-scales 4
evaluate prompts --protocol unconditional --num-videos 128 --num-frames 10
finish prompts
