#!/usr/bin/env bash
# The recipe for LibriSpeech-100: its sets and defaults for ./asr.sh, whose options can all be given here and win.
#   ./run.sh --asr_config conf/branchformer_mla.yaml
#   ./run.sh --corpus mini --asr_config conf/branchformer_mla.yaml    # small, synthesised, everything under mini/
#   ./run.sh --unlink             # remove the links that runs with ESPNET_ROOT have made here
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

exec python3 -m espnet_mla.recipe.run_sh "$@"
