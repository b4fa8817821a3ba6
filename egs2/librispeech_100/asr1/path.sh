# The environment of every script of this recipe: Python from the repository's .venv, where there is one, and with
# ESPNET_ROOT the tools of that ESPnet checkout. ESPnet's asr.sh reads this file too.

if [ -d "${ESPNET_ROOT:-}" ]; then
    MAIN_ROOT=$(cd "${ESPNET_ROOT}" && pwd)
    export ESPNET_ROOT=${MAIN_ROOT}
    export PATH=${PWD}/utils:${PATH}
    if [ -f "${MAIN_ROOT}/tools/extra_path.sh" ]; then
        . "${MAIN_ROOT}/tools/extra_path.sh"
    fi
    # The order that Kaldi's tools sort by.
    export LC_ALL=C PYTHONIOENCODING=UTF-8
fi

# local may be a link (as in mini/): its parent is this recipe's folder, three below the repository.
venv=$(cd -P local/../../../.. && pwd)/.venv
if [ -x "${venv}/bin/python3" ]; then
    export PATH=${venv}/bin:${PATH}
fi

if ! python3 -c "import espnet_mla" 2> /dev/null; then
    echo "error: python3 has no espnet_mla; setup_environment.sh at the top of the repository installs it" >&2
    return 1
fi
