"""A trained model as the recipe leaves one, made by ESPnet's own programs in seconds: the training is left out."""

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml
from espnet2.tasks.asr import ASRTask

import espnet_mla
from espnet_mla.recipe import tokens
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse

OPTIONS = (
    "--train_set", "train", "--valid_set", "dev", "--test_sets", "test", "--lang", "en", "--nbpe", "30",
    "--bpe_train_text", "data/train/text", "--asr_tag", "tiny", "--ngpu", "0",
    "--inference_args", "--beam_size 2 --ctc_weight 0.3 --maxlenratio 0.2",
)  # fmt: skip
DECODING = {"beam_size": 2, "ctc_weight": 0.3, "maxlenratio": 0.2}
RANK = 8  # kv_lora_rank
# A cgMLP of 32 channels: in float16, oneDNN's convolution of 16 never ends on a CPU with AVX512-FP16 (PyTorch 2.14.1).
MODEL = (
    "--encoder", "branchformer", "--encoder_conf", "output_size=32", "--encoder_conf", "attention_heads=2",
    "--encoder_conf", "num_blocks=2", "--encoder_conf", "cgmlp_linear_units=64", "--encoder_conf",
    "attention_layer_type=mla", "--encoder_conf", f"attention_conf.kv_lora_rank={RANK}", "--decoder", "transformer",
    "--decoder_conf", "attention_heads=2", "--decoder_conf", "linear_units=16", "--decoder_conf", "num_blocks=1",
    "--frontend_conf", "fs=16k", "--frontend_conf", "hop_length=160", "--normalize", "global_mvn",
)  # fmt: skip


def layout(*more: str) -> Layout:
    return Layout(parse([*OPTIONS, *more]), (*OPTIONS, *more))


def build(folder: Path) -> None:
    """Fill `folder` as a recipe fills its own by stage 13, but for the data."""
    with contextlib.chdir(folder):
        at = layout()
        text = Path("data/train/text")
        text.parent.mkdir(parents=True)
        text.write_text("a THE CAT SAT ON THE MAT\nb A BIG DOG RAN TO THE RED BARN AND BACK\nc WE SAW FIVE SHIPS\n")
        tokens.make_token_list(at)
        stats = at.asr_stats_dir / "train" / "feats_stats.npz"
        stats.parent.mkdir(parents=True)
        np.savez(stats, count=np.array(100), sum=np.full(80, -300.0), sum_square=np.full(80, 1500.0))
        command = [
            sys.executable, "-m", "espnet_mla.run", "-m", "espnet2.bin.asr_train", *MODEL,
            "--dry_run", "true", "--output_dir", str(at.asr_exp), "--normalize_conf", f"stats_file={stats}",
            "--use_preprocessor", "true", "--token_type", "bpe", "--bpemodel", at.bpemodel,
            "--token_list", str(at.token_list),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        add_model(at.asr_exp)
        (at.asr_exp / "RESULTS.md").write_text("# RESULTS\n\n|dataset|Err|\n|---|---|\n|decode_asr/test|12.3|\n")
        (at.asr_exp / "images").mkdir()
        (at.asr_exp / "images" / "loss.png").write_bytes(b"a curve")
    rng = np.random.default_rng(0)
    soundfile.write(folder / "speech.flac", rng.uniform(-0.3, 0.3, 24000), 16000)


def add_model(asr_exp: Path) -> None:
    """Give an experiment a model with random weights, under the names that training gives it."""
    espnet_mla.register()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, _ = ASRTask.build_model_from_file(asr_exp / "config.yaml")
    torch.save(model.state_dict(), asr_exp / "valid.acc.ave_1best.pth")
    (asr_exp / "valid.acc.ave.pth").symlink_to("valid.acc.ave_1best.pth")


def add_variant(tag: str, **encoder_conf: object) -> None:
    """Another experiment in the current folder, with another encoder."""
    config = yaml.safe_load(Path("exp/asr_tiny/config.yaml").read_text())
    config["encoder_conf"] |= encoder_conf
    folder = Path("exp") / f"asr_{tag}"
    config["output_dir"] = str(folder)
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "RESULTS.md").write_text("# RESULTS\n")
    add_model(folder)


def samples(folder: Path) -> np.ndarray:
    return soundfile.read(folder / "speech.flac", dtype="float32")[0]


def heard(speech2text, speech: np.ndarray) -> list[tuple[str, float]]:
    """The hypotheses: text and score of each."""
    return [(text, float(hypothesis.score)) for text, _, _, hypothesis in speech2text(speech)]
