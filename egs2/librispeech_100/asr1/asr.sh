#!/usr/bin/env bash
# The stages, with the options of ESPnet's asr.sh: by the ESPnet checkout that ESPNET_ROOT names (all of ESPnet:
# clusters, language models, k2), else by this package alone. What one has begun, the other can finish.
# With the one option --unlink, the links into the checkout are removed again.
set -euo pipefail

. ./path.sh

if ! python3 -c "import espnet_mla" 2> /dev/null; then
    echo "error: python3 has no espnet_mla; setup_environment.sh at the top of the repository installs it" >&2
    exit 1
fi
if [ "${1:-}" = --unlink ]; then
    exec python3 -m espnet_mla.recipe.checkout --unlink
fi
if [ -z "${ESPNET_ROOT:-}" ]; then
    exec python3 -m espnet_mla.recipe "$@"
fi
python3 -m espnet_mla.recipe.checkout "$@"
exec "${ESPNET_ROOT}/egs2/TEMPLATE/asr1/asr.sh" --python "python3 -m espnet_mla.run" "$@"
