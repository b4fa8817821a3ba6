#!/usr/bin/env bash
# The stages, with the options of ESPnet's asr.sh: by the ESPnet checkout that ESPNET_ROOT names (all of ESPnet:
# clusters, language models, k2), else by this package alone. What one has begun, the other can finish.
# With the one option --unlink, the links into the checkout are removed again.
set -euo pipefail

. ./path.sh

if [ "${1:-}" = --unlink ]; then
    exec python3 -m espnet_mla.recipe.checkout --unlink
fi
if [ -z "${ESPNET_ROOT:-}" ]; then
    exec python3 -m espnet_mla.recipe "$@"
fi
python3 -m espnet_mla.recipe.checkout "$@"
exec "${ESPNET_ROOT}/egs2/TEMPLATE/asr1/asr.sh" --python "python3 -m espnet_mla.run" "$@"
