#!/usr/bin/env bash
# Every architecture with every attention, from data to comparison; what is done is skipped. --help lists the options.
#   ./run_all_baselines.sh --corpus mini
#   ./run_all_baselines.sh --only "conformer_*" --seeds "1 2 3" --dry_run
set -euo pipefail

# Both are relative to where the user stands, not to this folder.
for name in LIBRISPEECH ESPNET_ROOT; do
    case ${!name:-/} in
        /*) ;;
        *) export "${name}=${PWD}/${!name}" ;;
    esac
done
cd "$(dirname "$0")"

. ./path.sh

exec python3 -m espnet_mla.baselines "$@"
