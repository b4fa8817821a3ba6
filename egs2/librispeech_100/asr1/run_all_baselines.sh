#!/usr/bin/env bash
# Every architecture with every attention, from data to comparison; what is done is skipped. --help lists the options.
#   ./run_all_baselines.sh --corpus mini
#   ./run_all_baselines.sh --only "conformer_*" --seeds "1 2 3" --dry_run
set -euo pipefail
cd "$(dirname "$0")"

. ./path.sh

exec python3 -m espnet_mla.recipe.baselines "$@"
