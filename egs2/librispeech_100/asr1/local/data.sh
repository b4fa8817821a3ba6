#!/usr/bin/env bash
# Stage 1: a corpus in, data/<set> out. Options: --corpus librispeech_100|mini, --nj N, --seed N (of mini).
set -euo pipefail

. ./path.sh
. ./db.sh
exec python3 -m espnet_mla.recipe.data "$@"
