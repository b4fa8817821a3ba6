"""How long measuring takes, and how well a second measurement agrees with the first.

    python benchmarks/measuring.py [conf ...]

For each configuration of conf/ (default: conformer_mha, conformer_mla and e_branchformer_mha) espnet-mla profile twice,
of a model with random weights, with 5,000 tokens and default options, but for --maxlenratio, which gives hypotheses the
length that a trained model's would have; and espnet-mla compare over 24 experiments with LibriSpeech's four test sets.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

CONF = Path(__file__).parents[1] / "conf"
TOKENS_A_FRAME = 0.16  # four tokens a second
SETS = {"test_clean": 2620, "test_other": 2939, "dev_clean": 2703, "dev_other": 2864}  # utterances of LibriSpeech
EXPERIMENTS = 24


def build(folder: Path, name: str, *options: str) -> None:
    """An experiment with random weights, and ten utterances of noise, 2 to 20 s long.

    Args:
        name: of a configuration of conf/.
        options: of asr_train.
    """
    import espnet_mla

    espnet_mla.register()
    from espnet2.tasks.asr import ASRTask

    folder.mkdir(parents=True)
    tokens = ["<blank>", "<unk>", *(f"t{number}" for number in range(4997)), "<sos/eos>"]
    (folder / "tokens.txt").write_text("\n".join(tokens) + "\n")
    command = [
        sys.executable, "-m", "espnet_mla.run", "-m", "espnet2.bin.asr_train", "--config", CONF / f"{name}.yaml",
        "--dry_run", "true", "--output_dir", folder, "--token_list", folder / "tokens.txt", "--token_type", "word",
        "--normalize", "utterance_mvn", "--frontend_conf", "fs=16k", "--ngpu", "0", "--use_amp", "false",
        *options,
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    torch.manual_seed(0)
    model, _ = ASRTask.build_model_from_file(folder / "config.yaml")
    torch.save(model.state_dict(), folder / "valid.acc.ave.pth")
    rng = np.random.default_rng(0)
    for number in range(10):
        soundfile.write(folder / f"{number}.flac", rng.uniform(-0.3, 0.3, 16000 * 2 * (number + 1)), 16000)
    (folder / "wav.scp").write_text("".join(f"utt{number} {folder / f'{number}.flac'}\n" for number in range(10)))


def profile(folder: Path) -> tuple[float, dict]:
    """Seconds, and the figures."""
    began = time.perf_counter()
    given = ["--asr_model_file", folder / "valid.acc.ave.pth", "--wav_scp", folder / "wav.scp"]
    command = [sys.executable, "-m", "espnet_mla.cli", "profile", *given, "--maxlenratio", str(TOKENS_A_FRAME)]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return time.perf_counter() - began, json.loads((folder / "figures.json").read_text())


def differences(first: dict, second: dict) -> list[str]:
    """Of each time and each memory: the second measurement against the first, and the spread of the first's runs."""
    lines = []
    for length, timed in first["encoder"].items():
        lines.append(_line(f"encoder, {length} s", timed, second["encoder"][length]))
    lines.append(_line("decoding", first["decoding"], second["decoding"]))
    for length, peaks in first["peak_memory"].items():
        for part, peak in peaks.items():
            again = second["peak_memory"][length][part]
            lines.append(
                f"| memory of {part}, {length} s | {peak / 1e6:.1f} MB | {100 * (again / peak - 1):+.1f} % | |"
            )
    return lines


def _line(name: str, timed: dict, again: dict) -> str:
    change = 100 * (again["seconds"] / timed["seconds"] - 1)
    spread = f"{timed['least']:.3f} to {timed['most']:.3f} s"
    return f"| {name} | {timed['seconds']:.3f} s | {change:+.1f} % | {spread} |"


def compare(folder: Path, figures: dict) -> float:
    """Seconds that a comparison of 24 experiments takes."""
    from espnet_mla.trained.figures import write

    rng = np.random.default_rng(0)
    places = []
    for number in range(EXPERIMENTS):
        sets = {}
        for name, utterances in SETS.items():
            words = rng.integers(1, 40, utterances)
            errors = rng.binomial(words, 0.06)
            rate = round(100 * errors.sum() / words.sum(), 2)
            of = {"rate": rate, "errors": errors.tolist(), "words": words.tolist()}
            sets[name] = {"utterances": [f"{name}-{n}" for n in range(utterances)], "wer": of, "cer": of}
        place = folder / f"model{number}"
        place.mkdir()
        named = figures["model"] | {"name": place.name, "conf": place.name}
        write(place, figures | {"model": named, "scores": {"decode_asr": sets}})
        places.append(str(place))
    began = time.perf_counter()
    command = [sys.executable, "-m", "espnet_mla.cli", "compare", *places, "--output", str(folder / "results")]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("confs", nargs="*", default=["conformer_mha", "conformer_mla", "e_branchformer_mha"])
    with tempfile.TemporaryDirectory() as scratch:
        for name in parser.parse_args().confs:
            folder = Path(scratch) / name
            build(folder, name)
            (first, figures), (second, again) = profile(folder), profile(folder)
            print(f"\n`{name}`: {first:.0f} and {second:.0f} s\n")
            print("| | first | second | least and most of the first |\n| --- | --- | --- | --- |")
            print("\n".join(differences(figures, again)), flush=True)
        print(f"\nComparing {EXPERIMENTS} experiments: {compare(Path(scratch), figures):.1f} s")


if __name__ == "__main__":
    main()
