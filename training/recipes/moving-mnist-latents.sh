#!/usr/bin/env bash
# Classic Moving MNIST at 128×128, 17 frames, in the latents of a video VAE (4 × 8 × 8) that is trained first: one
# data-centre GPU. Not yet run on one. `SCALE=tiny-cpu` runs the same on two CPU cores with small networks.
#
#   VAE_FLAGS="..."  more flags for the VAE's training
#   PYTHON=python    how that is started
. "$(dirname "$0")/common.sh"
SCALE=${SCALE:-moving-mnist}
PYTHON=${PYTHON:-python}
name=$SCALE-latents
vae=$OUT/$name-vae
clips=(--image_size 128 --num_frames 17)
network=(--patch_size 1)
vae_size=(--width 64 --layers_per_block 2 --per_device_batch_size 16 --mixed_precision bf16 --dataloader_num_workers 12)
if [ "$SCALE" = tiny-cpu ]; then
    vae_size=(--width 8 --per_device_batch_size 4 --max_steps 2000)
fi

if [ ! -f "$vae/config.json" ]; then # its part may be one of many, as in `train`
    # shellcheck disable=SC2086
    $PYTHON training/train_vae.py --vae_class AutoencoderKLWan --spatial_compression 8 --temporal_compression 4 \
        --latent_channels 8 --output_dir "$vae" "${clips[@]}" "${vae_size[@]}" \
        ${PART_MINUTES:+--part_minutes "$PART_MINUTES"} ${VAE_FLAGS:-}
fi
train "$name" "$SCALE" --vae "$vae" "${clips[@]}" "${network[@]}" "$@"
video-diffusion generate --model "$OUT/$name" --out "$OUT/$name/samples"
