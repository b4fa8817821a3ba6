"""The corpora of the recipe as a table: where a run on each one works, and the defaults of its options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT = "librispeech_100"


@dataclass(frozen=True)
class Corpus:
    """A corpus; values that are named as options of asr.sh are run.sh's defaults for them.

    Args:
        folder: where its runs work, relative to the recipe's folder.
        nbpe: size of the BPE vocabulary.
        test_sets: names of the test sets.
        speed_perturb_factors: factors of speed perturbation; empty for none.
        inference_args: options of decoding that win over conf/decode_asr.yaml.
        note: what every table of results made from the corpus says; stage 1 leaves it in data/note.
        scaling: options of training that make any configuration small; empty where configurations are used as they are.
        width: the size of the model then, by which ranks are scaled too.
        encoder_scaling: encoder -> the options that make its layers narrow, and its convolutions short.
    """

    folder: Path
    nbpe: int
    test_sets: str
    speed_perturb_factors: str = ""
    inference_args: str = ""
    note: str = ""
    scaling: str = ""
    width: int = 0
    encoder_scaling: Mapping[str, str] = field(default_factory=dict)


CORPORA = {
    "librispeech_100": Corpus(
        folder=Path(),
        nbpe=5000,
        test_sets="test_clean test_other dev_clean dev_other",
        speed_perturb_factors="0.9 1.0 1.1",
    ),
    "mini": Corpus(
        folder=Path("mini"),
        nbpe=60,
        test_sets="test_clean test_other test_noisy",
        inference_args="--beam_size 5",
        note="Mini corpus: synthesised speech, for trying the machinery. Nobody reports a result on it.",
        # For 3 hours of speech on a CPU: fewer and narrower layers, fewer filters, more and shorter steps, epochs of an
        # hour, the best of which are averaged; no SpecAugment, for which it is too short, and no dropout, which
        # takes a sixth of the time where speech is heard but six times.
        scaling=(
            "--frontend_conf n_mels=24 --encoder_conf num_blocks=4 --decoder_conf num_blocks=2 "
            "--decoder_conf linear_units=576 --encoder_conf dropout_rate=0 --encoder_conf positional_dropout_rate=0 "
            "--encoder_conf attention_dropout_rate=0 --decoder_conf dropout_rate=0 "
            "--decoder_conf positional_dropout_rate=0 --decoder_conf self_attention_dropout_rate=0 "
            "--decoder_conf src_attention_dropout_rate=0 --specaug none --batch_bins 400000 --accum_grad 1 "
            "--num_workers 0 --num_iters_per_epoch 150 --max_epoch 20 --keep_nbest_models 3 --optim_conf lr=0.003 "
            "--scheduler_conf warmup_steps=400"
        ),
        width=96,
        # Kernels as short as the model is: 12 layers of 31 frames reach 7 s to either side of LibriSpeech's 12.7 s, and
        # 4 layers of 7 frames 0.5 s of 3.5 s. With 31 frames, convolutions would do without attention.
        encoder_scaling={
            "conformer": "--encoder_conf linear_units=384 --encoder_conf cnn_module_kernel=7",
            "contextual_block_conformer": "--encoder_conf linear_units=384 --encoder_conf cnn_module_kernel=7",
            "branchformer": "--encoder_conf cgmlp_linear_units=576 --encoder_conf cgmlp_conv_kernel=7",
            "e_branchformer": (
                "--encoder_conf linear_units=384 --encoder_conf cgmlp_linear_units=576 "
                "--encoder_conf cgmlp_conv_kernel=7 --encoder_conf merge_conv_kernel=7"
            ),
        },
    ),
}
