# Sourced by the recipes: `train NAME PRESET [FLAGS]`, `evaluate NAME …`, `finish NAME`.
#
#   MAX_MINUTES=9   the time of the training; the rate falls to zero in its last fifth (a GPU preset: 60 minutes)
#   PART_MINUTES=5  stop after a part of so many minutes with exit code 3; the same command goes on
#   OUT=runs        where the run is kept
#   TRAIN="..."     how the training is started: by default `video-diffusion train`, on one device; on several
#                   TRAIN="accelerate launch training/train.py", whose exit code is 1 in the place of 3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
OUT=${OUT:-runs}
TRAIN=${TRAIN:-video-diffusion train}

train() {
    local name=$1 preset=$2
    shift 2
    [ -f "$OUT/$name/model_index.json" ] && return # trained already
    $TRAIN --preset "$preset" --output_dir "$OUT/$name" \
        ${MAX_MINUTES:+--max_minutes "$MAX_MINUTES"} ${PART_MINUTES:+--part_minutes "$PART_MINUTES"} "$@"
}

evaluate() { # resumes by itself
    local name=$1
    shift
    video-diffusion evaluate --model "$OUT/$name" --out "$OUT/$name/evaluation" "$@"
}

finish() {
    video-diffusion card "$OUT/$1" --samples
}
