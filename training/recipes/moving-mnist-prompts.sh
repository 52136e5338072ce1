#!/usr/bin/env bash
# Makes `moving-mnist-text`, which obeys prompts: four adapters, one after the other, each merged, and in the end one
# adapter of what they have learned. Short clips say as much of a caption as long ones and cost less, so most of the
# time is theirs; whole clips follow. Two and a half hours of two CPU cores.
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

short=(--num_frames 4 --per_device_batch_size 16 --learning_rate 1e-3 --ema_decay 0.98
    --mask_probabilities 0.9 0.1 0 0 --caption_dropout 0.1)
long=(--num_frames 20 --per_device_batch_size 4 --learning_rate 3e-4 --ema_decay 0.97)

adapt prompts-1 "$BASE" 38 8 --seed 1 "${short[@]}" "$@"
adapt prompts-2 "$OUT/prompts-1" 15 8 --seed 2 "${long[@]}" --mask_probabilities 0.65 0.2 0.1 0.05 --caption_dropout 0.25 "$@"
adapt prompts-3 "$OUT/prompts-2" 70 15 --seed 3 "${short[@]}" --logit_normal 0.9 0.8 "$@"
adapt prompts-4 "$OUT/prompts-3" 25 10 --seed 4 "${long[@]}" --mask_probabilities 0.8 0.1 0.05 0.05 --caption_dropout 0.15 \
    --logit_normal 0.8 1.0 "$@"
[ -f "$OUT/moving-mnist-text/README.md" ] || # what all four have learned, as one adapter of the base
    video-diffusion export lora --model "$OUT/prompts-4" --base "$BASE" --rank 64 --out "$OUT/moving-mnist-text"
# Steps and guidance as the released generation_config.json has them; here they are still those of the base.
evaluate moving-mnist-text --protocol text --num-videos 24 --guidance-scales 4 6 --steps 8
evaluate moving-mnist-text --protocol unconditional --num-videos 128 --num-frames 10 --steps 8
finish moving-mnist-text
