#!/usr/bin/env bash
# Make .venv, the Python environment that holds this package and all that it needs; where it is up to date, do nothing.
set -euo pipefail

usage() {
    cat <<'END'
Usage: ./setup_environment.sh [--find | --help]

Makes .venv in this folder and installs the package into it. Run again, it installs only what pyproject.toml changed.
It takes the first Python 3.12 or 3.13 of: $PYTHON, python3.13, python3.12, python3, pyenv's, uv's.

  --find    print the interpreter that it would take, and stop
END
}

# Reads nothing of the user's Python settings (-I) and tells the version and the interpreter itself, not a shim for it.
PROBE='import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2], sys.executable)'

tried=()
found=

# try NAME COMMAND: set `found` where COMMAND is an interpreter to take, else note in `tried` why NAME is none.
try() {
    local name=$1 command=$2 answer
    if ! command -v "${command}" >/dev/null 2>&1; then
        tried+=("${name}: there is no such command")
    elif ! answer=$("${command}" -I -c "${PROBE}" 2>&1); then
        tried+=("${name}: does not run: $(reason "${answer}")")
    elif [[ ${answer} =~ ^3\.1[23]\ /. ]]; then
        found=${answer#* }
        return 0
    else
        tried+=("${name}: is Python ${answer%% *}")
    fi
    return 1
}

# The line of an answer that says most: Python's error, or the first line that is not empty.
reason() {
    local line first=
    while IFS= read -r line; do
        : "${first:=${line}}"
        if [[ ${line} == *Error:* ]]; then
            first=${line}
        fi
    done <<<"$1"
    echo "${first:-it says nothing}"
}

try_pyenv() {
    local pyenv version versions count=${#tried[@]}
    if ! pyenv=$(command -v pyenv || command -v "${PYENV_ROOT:-${HOME:-}/.pyenv}/bin/pyenv"); then
        tried+=("pyenv: there is no such command")
        return 1
    fi
    versions=$("${pyenv}" versions --bare 2>/dev/null) || true
    for version in ${versions}; do
        try "pyenv's ${version}" "$("${pyenv}" prefix "${version}" 2>/dev/null)/bin/python" && return 0
    done
    if [ "${#tried[@]}" -eq "${count}" ]; then
        tried+=("pyenv: has no version")
    fi
    return 1
}

try_uv() {
    local version path
    if ! command -v uv >/dev/null 2>&1; then
        tried+=("uv: there is no such command")
        return 1
    fi
    for version in 3.13 3.12; do
        if path=$(uv python find --system "${version}" 2>/dev/null) && [ -n "${path}" ]; then
            try "uv's ${version}" "${path}" && return 0
        else
            tried+=("uv: has no Python ${version}")
        fi
    done
    return 1
}

find_python() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        try "\$PYTHON (${PYTHON})" "${PYTHON}" && return 0
        echo "PYTHON=${PYTHON} can't be taken (${tried[0]}): looking for another" >&2
    else
        tried+=('$PYTHON: is not set')
    fi
    for name in python3.13 python3.12 python3; do
        try "${name}" "${name}" && return 0
    done
    if try_pyenv || try_uv; then
        return 0
    fi
    {
        echo "Found no Python 3.12 or 3.13. Tried:"
        printf '  %s\n' "${tried[@]}"
        echo "Get one, for example by: uv python install 3.12; pyenv install 3.12; conda create -n py312 python=3.12;"
        echo "sudo apt install python3.12 python3.12-venv; or from https://www.python.org/downloads/."
        echo "One in an unusual place is named so: PYTHON=/path/to/python3.12 ./setup_environment.sh"
    } >&2
    return 1
}

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")"
    local root=${PWD} venv=.venv
    local python=${venv}/bin/python stamp=${venv}/.espnet_mla_installed begun=${venv}/.espnet_mla_begun

    # What would make Python or pip look at, or write into, another environment of the user's.
    unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_PYTHON PIP_ROOT

    case ${1:-} in
        "") ;;
        --find)
            find_python
            echo "${found}"
            return
            ;;
        -h | --help)
            usage
            return
            ;;
        *)
            usage >&2
            return 2
            ;;
    esac

    # One at a time: a second would take the first's unfinished work for a killed run's.
    if command -v flock >/dev/null 2>&1; then
        exec 9<pyproject.toml
        flock 9
    fi

    local version= wanted
    version=$("${python}" -I -c "${PROBE}" 2>/dev/null) || version=
    version=${version%% *}
    wanted="${version} ${root} $(cat pyproject.toml setup.py | cksum)"
    if [[ -f ${stamp} && ! -e ${begun} && -n ${version} && $(<"${stamp}") == "${wanted}" ]]; then
        return
    fi

    if [[ -e ${begun} ]]; then
        echo "${root}/${venv} was left half made: making it again"
        rm -rf "${venv}"
    elif [[ -f ${stamp} && -z ${version} ]]; then
        echo "the Python of ${root}/${venv} is gone: making it again"
        rm -rf "${venv}"
    elif [[ -d ${venv} && ! ${version} =~ ^3\.1[23]$ ]]; then
        echo "${root}/${venv} is no environment with Python 3.12 or 3.13 (but: ${version:-does not run})." >&2
        echo "Move or remove it, and run this again." >&2
        return 1
    fi
    if [[ ! -d ${venv} ]]; then
        find_python
        echo "making ${root}/${venv} with ${found}"
        mkdir "${venv}"
        touch "${begun}"
        "${found}" -I -m venv "${venv}"
    fi
    touch "${begun}"
    if ! "${python}" -m pip install --disable-pip-version-check --editable ".[test]"; then
        # It has undone its work, so only a run that was killed leaves the mark of a half-made environment.
        rm -f "${begun}"
        echo "the installation into ${root}/${venv} failed, see above; run this again to continue" >&2
        return 1
    fi
    version=$("${python}" -I -c "${PROBE}")
    echo "${version%% *} ${root} $(cat pyproject.toml setup.py | cksum)" >"${stamp}"
    rm -f "${begun}"
    echo "${root}/${venv} is ready"
}

main "$@"
