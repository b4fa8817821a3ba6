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

if [ "${1:-}" = --unlink ]; then
    ./asr.sh --unlink
    [ ! -d mini ] || (cd mini && ./asr.sh --unlink)
    exit
fi

corpus=librispeech_100
asr_config=conf/branchformer_mla.yaml
asr_args=
token_type=bpe
nbpe=

# Options that follow from the corpus are read here; all others go to asr.sh as they are.
options=()
while [ $# -gt 0 ]; do
    case $1 in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    name=${1#--}
    name=${name//-/_}
    case ${name} in
        corpus|asr_config|asr_args|token_type|nbpe)
            [ $# -ge 2 ] || { echo "error: $1 lacks its value" >&2; exit 2; }
            printf -v "${name}" %s "$2" ;;
        *) options+=("${@:1:2}") ;;
    esac
    shift $(($# > 1 ? 2 : 1))
done

# One GPU trains and decodes where there is one; without, all cores do.
cores=$(nproc 2> /dev/null || getconf _NPROCESSORS_ONLN)
if nvidia-smi -L > /dev/null 2>&1; then
    hardware=(--ngpu 1 --gpu_inference true --inference_nj 2)
else
    hardware=(--ngpu 0 --gpu_inference false --inference_nj "${cores}")
fi

case ${corpus} in
    librispeech_100)
        nbpe=${nbpe:-5000}
        sets=(--test_sets "test_clean test_other dev_clean dev_other" --speed_perturb_factors "0.9 1.0 1.1")
        [ -z "${asr_args}" ] || sets+=(--asr_args "${asr_args}")
        ;;
    mini)
        nbpe=${nbpe:-60}
        sets=(--test_sets "test_clean test_other")
        # Everything lies below mini/, where the stages work: mini/exp/... is exp/... to them.
        options=(${options[@]+"${options[@]#mini/}"})
        # The same configuration made small, for 26 minutes of clean speech on a CPU: fewer and narrower layers, half the
        # filters, more and shorter steps, and no SpecAugment, which this little speech can't afford.
        scale="--frontend_conf n_mels=40 --encoder_conf output_size=96 --encoder_conf num_blocks=4"
        case $(sed -n 's/^encoder: *//p' "${asr_config}" 2> /dev/null) in
            conformer|contextual_block_conformer) scale+=" --encoder_conf linear_units=384" ;;
            branchformer) scale+=" --encoder_conf cgmlp_linear_units=576" ;;
            e_branchformer) scale+=" --encoder_conf linear_units=384 --encoder_conf cgmlp_linear_units=576" ;;
        esac
        scale+=" --decoder_conf num_blocks=2 --decoder_conf linear_units=576 --specaug none"
        scale+=" --batch_bins 400000 --accum_grad 1 --num_workers 0 --max_epoch 12 --keep_nbest_models 3"
        scale+=" --optim_conf lr=0.003 --scheduler_conf warmup_steps=400"
        case ${asr_config} in
            mini/*)  # of a model that was trained here, so it is small already
                scale=
                asr_config=${asr_config#mini/} ;;
        esac
        # The name of the experiment leaves the scaling out: everything under mini/ has it.
        tokens=${token_type}
        [ "${token_type}" != bpe ] || tokens+=${nbpe}
        asr_tag=$(basename "${asr_config}" .yaml)_raw_en_${tokens}
        asr_tag+=$(sed -e "s/--/_/g" -e "s/[ |=/]//g" <<< "${asr_args}")
        sets+=(--asr_tag "${asr_tag}" --asr_args "${scale} ${asr_args}" --inference_args "--beam_size 5")
        # A folder of its own, so that nothing is mixed up with LibriSpeech; LIBRISPEECH is meant for the real one.
        unset LIBRISPEECH
        mkdir -p mini
        for name in asr.sh path.sh cmd.sh db.sh local conf; do
            ln -sfn "../${name}" "mini/${name}"
        done
        cd mini
        ;;
    *)
        echo "error: --corpus ${corpus}: valid are librispeech_100 and mini" >&2
        exit 2
        ;;
esac

# exec: who ends this script ends what it started.
exec ./asr.sh \
    --lang en \
    --nj "${cores}" \
    "${hardware[@]}" \
    --local_data_opts "--corpus ${corpus}" \
    --feats_type raw \
    --audio_format flac \
    --max_wav_duration 30 \
    --token_type "${token_type}" \
    --nbpe "${nbpe}" \
    --use_lm false \
    --asr_config "${asr_config}" \
    --inference_config conf/decode_asr.yaml \
    --train_set train_clean_100 \
    --valid_set dev \
    --bpe_train_text data/train_clean_100/text \
    --lm_train_text data/train_clean_100/text \
    "${sets[@]}" \
    ${options[@]+"${options[@]}"}
