"""What a conversion costs: WER by method and share of the cache kept, before and after fine-tuning; and its time.

    python benchmarks/conversion.py wer                    # trains on the mini corpus, see below
    python benchmarks/conversion.py wer --table            # only prints what was measured so far
    python benchmarks/conversion.py speech FOLDER          # a recipe's folder with a trained model of real speech
    python benchmarks/conversion.py time                   # 12 blocks of 256, 200 utterances of 12.7 s
    python benchmarks/conversion.py order EXPERIMENT       # statistics of all layers at once, and layer by layer
    python benchmarks/conversion.py ranks EXPERIMENT       # one rank for all layers, and ranks by energy and by loss

`wer` trains conf/conformer_mha.yaml and conf/branchformer_mha.yaml on the mini corpus with three seeds each, converts
each model by every method with 200 utterances of its training set, and decodes the test sets as stage 12 does. What is
measured is kept in mini/exp/conversion/, and not measured again.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from rapidfuzz.distance import Levenshtein

import espnet_mla
from espnet_mla.common.files import write_text
from espnet_mla.common.tables import read_table
from espnet_mla.recipe.corpora import CORPORA
from espnet_mla.trained.tasks import ASR

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "egs2" / "librispeech_100" / "asr1"
CONFS, SEEDS = ("conformer_mha", "branchformer_mha"), (1, 2, 3)
KEPT = {"12.5 %": 0.125, "7.8 %": 0.078125, "6.25 %": 0.0625, "3.1 %": 0.03125}
METHODS = ("split", "joint", "covariance", "attention")
D_MODEL = 96
SETS = CORPORA["mini"].test_sets.split()

Utterances = list[tuple[np.ndarray, list[str]]]


def conversions() -> dict[str, tuple[str, ...]]:
    """Name -> options of espnet-mla convert."""
    found = {"attention 50 %": ("--kv_lora_rank", str(D_MODEL))}
    for label, kept in KEPT.items():
        rank = str(round(2 * D_MODEL * kept))
        found |= {f"{method} {label}": ("--kv_lora_rank", rank, "--method", method) for method in METHODS}
        found[f"attention, by layer {label}"] = ("--kv_budget", str(kept))
    for method in ("mean", "aligned"):
        found[f"gqa {method} 25 %"] = ("--attention", "gqa", "--num_kv_heads", "1", "--method", method)
    return found


TUNED = ("attention 6.25 %", "attention 3.1 %", "gqa aligned 25 %")


def trained(recipe: Path, conf: str, seed: int, args: str = "") -> Path:
    """The experiment of a model; it is trained where it is not there.

    Args:
        args: more of --asr_args.
    """
    tag = args.replace("--", "_").replace("=", "").replace(" ", "")
    folder = recipe / "mini" / "exp" / f"asr_{conf}_raw_en_bpe60{tag}_seed{seed}"
    if not (folder / "valid.acc.ave.pth").exists():
        first = "11" if (recipe / "mini/exp/asr_stats_raw_en_bpe60/train/feats_stats.npz").exists() else "1"
        stages = ("--stage", first, "--stop_stage", "11")
        run(recipe, "--asr_config", f"conf/{conf}.yaml", "--asr_args", f"{args} --seed {seed}".strip(), *stages)
    return folder


def run(recipe: Path, *options: str) -> None:
    """Some stages on the mini corpus."""
    environment = {key: value for key, value in os.environ.items() if key != "ESPNET_ROOT"}
    done = subprocess.run(
        ["./run.sh", "--corpus", "mini", *options], cwd=recipe, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def test_sets(recipe: Path) -> dict[str, Utterances]:
    """Name -> samples and words of each utterance."""
    data = {}
    for name in SETS:
        texts, folder = read_table(recipe / f"mini/dump/raw/{name}/text"), recipe / f"mini/dump/raw/{name}"
        entries = read_table(folder / "wav.scp")
        data[name] = [(soundfile.read(entries[key], dtype="float32")[0], texts[key].split()) for key in entries]
    return data


def decoded(folder: Path, data: dict[str, Utterances]) -> dict[str, list[int]]:
    """Of each set the errors of each utterance, decoded as stage 12 does on the mini corpus."""
    options = yaml.safe_load((ROOT / "conf/decode_asr.yaml").read_text()) | {"beam_size": 5}
    speech2text = espnet_mla.from_pretrained(folder, **options)
    return errors(data, lambda samples: speech2text(samples)[0][0])


def decoded_by_ctc(folder: Path, data: dict[str, Utterances]) -> dict[str, list[int]]:
    """The same by the best label of each frame alone, to which the encoder matters most."""
    return heard_by_ctc(espnet_mla.from_pretrained(folder, beam_size=1), data)


def heard_by_ctc(speech2text: Any, data: dict[str, Utterances]) -> dict[str, list[int]]:
    model, blank = speech2text.asr_model, speech2text.asr_model.blank_id

    def text(samples: np.ndarray) -> str:
        with torch.no_grad():
            labels = model.ctc.argmax(encode(model, samples)[None])[0].unique_consecutive()
        tokens = speech2text.converter.ids2tokens(labels[labels != blank].tolist())
        return speech2text.tokenizer.tokens2text(tokens)

    return errors(data, text)


def errors(data: dict[str, Utterances], text: Callable[[np.ndarray], str]) -> dict[str, list[int]]:
    return {
        name: [Levenshtein.distance(words, text(samples).split()) for samples, words in utterances]
        for name, utterances in data.items()
    }


def counted(errors: dict[str, list[int]], data: dict[str, Utterances]) -> dict[str, list[int]]:
    """Of each set the wrong words and all words."""
    return {name: [sum(errors[name]), sum(len(words) for _, words in data[name])] for name in data}


@torch.no_grad()
def encode(model: torch.nn.Module, samples: np.ndarray) -> torch.Tensor:
    """The encoder's output, (time, d)."""
    return model.encode(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))[0][0]


def encoded(folder: Path, data: dict[str, Utterances]) -> list[torch.Tensor]:
    """The encoder's output for the first set."""
    model = espnet_mla.from_pretrained(folder, beam_size=1).asr_model
    return [encode(model, samples) for samples, _ in data[SETS[0]]]


def difference(these: list[torch.Tensor], those: list[torch.Tensor]) -> float:
    """||these - those|| / ||those||."""
    error = sum((a - b).square().sum() for a, b in zip(these, those, strict=True))
    return float((error / sum(b.square().sum() for b in those)).sqrt())


def measure(recipe: Path, conf: str, seed: int) -> None:
    """All conversions of one model, on one core."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of fine-tuning, beside which the other model is at work
    os.chdir(recipe)
    source, data = trained(recipe, conf, seed), test_sets(recipe)
    results = recipe / "mini/exp/conversion" / f"{conf}_{seed}.json"
    measured = json.loads(results.read_text()) if results.exists() else {}
    original = encoded(source, data)

    def note(name: str, folder: Path) -> None:
        figures = measured.setdefault(name, {})
        if "words" not in figures:
            figures["words"] = counted(decoded(folder, data), data)
        if "ctc" not in figures:
            figures["ctc"] = counted(decoded_by_ctc(folder, data), data)
        if "encoder" not in figures:
            figures["encoder"] = difference(encoded(folder, data), original)
        if (record := folder / "conversion.json").exists():
            layers = json.loads(record.read_text())["layers"]
            figures |= {
                "layers": [layer["relative_error"] for layer in layers],
                "sizes": [layer["size"] for layer in layers],
            }
        write_text(results, json.dumps(measured, indent=1))

    note("mha", source)
    if "ctc" not in measured.get("mha, tuned", {}):  # what the same training does to the model as it is
        from espnet_mla.convert.experiment import finetuning

        tuned = results.with_suffix("")
        config = tuned.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(finetuning(yaml.safe_load((source / "config.yaml").read_text()), ASR)))
        tune(recipe, config, source / "valid.acc.ave.pth", tuned)
        note("mha, tuned", tuned)
        shutil.rmtree(tuned)
    for name, options in conversions().items():
        if all("ctc" in measured.get(made, {}) for made in (name, *([f"{name}, tuned"] if name in TUNED else []))):
            continue
        folder = recipe / "mini/exp/conversion" / f"{conf}_{seed}_{name}".replace(" ", "_")
        convert(source, recipe / "mini/data/train_clean_100/wav.scp", folder, options)
        note(name, folder)
        if name in TUNED:
            tuned = folder.with_name(folder.name + "_tuned")
            tune(recipe, folder / "finetune.yaml", folder / "model.pth", tuned)
            note(f"{name}, tuned", tuned)
            shutil.rmtree(tuned)
        shutil.rmtree(folder)


def tune(recipe: Path, config: Path, model: Path, folder: Path) -> None:
    """Train on, by stage 11."""
    config_, model_, folder_ = (str(path.relative_to(recipe)) for path in (config, model, folder))
    stages = ("--stage", "11", "--stop_stage", "11")
    run(recipe, *stages, "--asr_config", config_, "--pretrained_model", model_, "--asr_exp", folder_)


def convert(source: Path, calibration: Path, folder: Path, options: tuple[str, ...]) -> None:
    """espnet-mla convert, in this process."""
    from espnet_mla.convert.command import main

    command = ["--asr_model_file", str(source / "valid.acc.ave.pth"), "--calibration", str(calibration), *options]
    with contextlib.redirect_stdout(None):
        if main([*command, "--output_dir", str(folder), "--overwrite"]):
            raise SystemExit(f"converting {source} failed")


def wer(recipe: Path, table: bool) -> None:
    """Measure what is missing, two models at a time, and print the tables."""
    if not table:
        for conf in CONFS:
            for seed in SEEDS:
                trained(recipe, conf, seed)
        jobs = [(recipe, conf, seed) for seed in SEEDS for conf in CONFS]
        with ProcessPoolExecutor(2, max_tasks_per_child=1) as pool:
            list(pool.map(measure, *zip(*jobs, strict=True)))
    for conf in CONFS:
        runs = [
            json.loads(path.read_text()) for path in sorted((recipe / "mini/exp/conversion").glob(f"{conf}_*.json"))
        ]
        print(f"\n{conf}, {len(runs)} seeds\n")
        print(f"{HEAD}\n| {'--- | ' * (HEAD.count('|') - 1)}")
        for name in (name for name in runs[0] if all("ctc" in run.get(name, {}) for run in runs)):
            print("| " + " | ".join([name, *cells([run[name] for run in runs], [run["mha"] for run in runs])]) + " |")


HEAD = "| | WER | wrong words | the same, CTC alone | wrong words | encoder output | attention output |"


def cells(runs: list[dict], originals: list[dict]) -> Iterator[str]:
    """A row of the table: WER in per cent and how much more than the original's, and relative errors of outputs."""
    for way in ("words", "ctc"):
        wrong, whole, before = (
            sum(run[way][name][index] for run in measured for name in SETS)
            for measured, index in ((runs, 0), (runs, 1), (originals, 0))
        )
        yield f"{100 * wrong / whole:.2f} ({100 * (wrong / before - 1):+.1f} %)"
        yield str(wrong)
    yield f"{np.mean([run['encoder'] for run in runs]):.3f}"
    yield f"{np.mean([run['layers'] for run in runs]):.3f}" if "layers" in runs[0] else ""


def speech(recipe: Path) -> None:
    """Convert the experiments of a recipe's folder by every method and rank, and print WER and errors of each layer."""
    os.chdir(recipe)
    sources = [path.parent for path in sorted(recipe.glob("exp/asr_*_mha*/valid.acc.ave.pth"))]
    for source in sources:
        config = yaml.safe_load((source / "config.yaml").read_text())
        d_model = config["encoder_conf"]["output_size"]
        data = {}
        sets = ("test_clean", "test_other")
        for name in sets:
            entries, texts = (read_table(recipe / f"dump/raw/{name}/{table}") for table in ("wav.scp", "text"))
            data[name] = [(soundfile.read(entries[key], dtype="float32")[0], texts[key].split()) for key in entries]
        print(
            f"\n{source.name}\n\n| | "
            + " | ".join(f"WER {name}" for name in sets)
            + " | relative error of each layer |"
        )
        print("| --- | --- | --- | --- |")
        row("mha", counted(decoded(source, data), data), [])
        for label, kept in KEPT.items():
            for method in METHODS:
                with tempfile.TemporaryDirectory(dir=recipe / "exp") as scratch:
                    folder = Path(scratch) / "converted"
                    options = ("--kv_lora_rank", str(round(2 * d_model * kept)), "--method", method)
                    convert(source, recipe / "data/train_clean_100/wav.scp", folder, options)
                    layers = json.loads((folder / "conversion.json").read_text())["layers"]
                    row(
                        f"{method} {label}",
                        counted(decoded(folder, data), data),
                        [layer["relative_error"] for layer in layers],
                    )


def row(name: str, words: dict[str, list[int]], errors: list[float]) -> None:
    rates = [f"{100 * wrong / whole:.1f}" for wrong, whole in words.values()]
    print("| " + " | ".join([name, *rates, " ".join(f"{error:.2f}" for error in errors)]) + " |", flush=True)


class Latent:
    """A trained model whose attentions become latent ones of any rank, with statistics that are gathered once.

    Args:
        experiment: the folder of the model.
    """

    def __init__(self, experiment: Path):
        from espnet_mla.convert import calibration, layers
        from espnet_mla.trained.model import find

        os.chdir(experiment.parents[2])
        espnet_mla.register()
        self.experiment = experiment
        self.source = find(None, str(experiment / "valid.acc.ave.pth"), None)
        self.model, self.args = self.source.load()
        (part,) = layers.parts(self.model, ["encoder"], self.source.config, "mla")
        self.old = part.attentions
        self.speech = calibration.prepare(Path("mini/data/train_clean_100/wav.scp"), 200, self.args, False)
        self.factors: dict[str, Any] = {}

    def gather(self, names: list[str]) -> None:
        """The statistics of these attentions, of the model as it is now."""
        from espnet_mla.convert import factors, layers
        from espnet_mla.convert.model import _collect_statistics

        with contextlib.redirect_stdout(io.StringIO()):
            found, _ = _collect_statistics(self.model, self.args, {name: self.old[name] for name in names}, self.speech)
        for name, statistics in found.items():
            self.factors[name] = factors.attention(layers.weights_of(self.old[name]), statistics)

    def put(self, name: str, rank: int | None) -> None:
        """An attention of that rank in its place; None: the original's."""
        from espnet_mla.attention import build_attention
        from espnet_mla.convert import layers

        old = self.old[name]
        if rank is None:
            self.model.set_submodule(name, old)
            return
        sizes = {"d_model": D_MODEL, "num_heads": layers.heads_of(old), "dropout_rate": 0.0}
        new = build_attention("mla", {"kv_lora_rank": rank}, position="rel_pos", **sizes).eval()
        new.load_state_dict(layers.as_mla(old, self.factors[name].factors(rank)))
        self.model.set_submodule(name, new)

    def errors_by_ctc(self, data: dict[str, Utterances]) -> int:
        """Wrong words of the model as it is now."""
        speech2text = espnet_mla.from_pretrained(self.experiment, beam_size=1)
        speech2text.asr_model = self.model
        return sum(map(sum, heard_by_ctc(speech2text, data).values()))


def order(experiment: Path) -> None:
    """Print the errors by CTC alone where each layer's statistics are gathered with those before it converted, or not.

    Layer by layer, as in GPTQ (arXiv 2210.17323), later layers could make up for what earlier ones lose.
    """
    latent = Latent(experiment)
    data = test_sets(latent.experiment.parents[2])
    print("| kept | all at once | layer by layer |\n| --- | --- | --- |")
    for kept, share in KEPT.items():
        cells = []
        for by_layer in (False, True):
            for name in latent.old:
                latent.put(name, None)
            for names in [[name] for name in latent.old] if by_layer else [list(latent.old)]:
                latent.gather(names)
                for name in names:
                    latent.put(name, round(2 * D_MODEL * share))
            cells.append(latent.errors_by_ctc(data))
        print(f"| {kept} | {cells[0]} | {cells[1]} |", flush=True)


RANKS = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48)
"""That a layer may get by its loss."""


def ranks(experiment: Path) -> None:
    """Print the errors by CTC alone where all layers have one rank, and where ranks follow energy or loss.

    The loss of a layer at a rank is the Kullback-Leibler divergence of the CTC posteriors of the model in which only
    this layer is converted, from the original's, over 30 utterances of the calibration speech. Those of the layers are
    added, and of all ranks within the budget the ones of the least sum are taken.
    """
    from espnet_mla.convert import factors

    latent = Latent(experiment)
    data = test_sets(latent.experiment.parents[2])
    latent.gather(list(latent.old))
    speech = [samples.numpy() for _, samples in itertools.islice(latent.speech.speech, 30)]

    def posteriors() -> list[torch.Tensor]:
        with torch.no_grad():
            return [latent.model.ctc.log_softmax(encode(latent.model, samples)[None]) for samples in speech]

    original, losses = posteriors(), {}
    for name, rank in itertools.product(latent.old, RANKS):
        latent.put(name, rank)
        pairs = zip(original, posteriors(), strict=True)
        losses[name, rank] = sum((p.exp() * (p - q)).sum().item() for p, q in pairs)
        latent.put(name, None)
    print("| kept | one rank | by energy | by loss |\n| --- | --- | --- | --- |")
    for kept, share in KEPT.items():
        total = round(2 * D_MODEL * share) * len(latent.old)
        one = [total // len(latent.old)] * len(latent.old)
        energy = factors.allocate([latent.factors[name].spectrum for name in latent.old], total)
        loss = min(
            (given for given in itertools.product(RANKS, repeat=len(latent.old)) if sum(given) <= total),
            key=lambda given: sum(losses[pair] for pair in zip(latent.old, given, strict=True)),
        )
        cells = []
        for given in (one, energy, loss):
            for name, rank in zip(latent.old, given, strict=True):
                latent.put(name, rank)
            cells.append(f"{latent.errors_by_ctc(data)} ({' '.join(map(str, given))})")
        print(f"| {kept} | {' | '.join(cells)} |", flush=True)


def timed() -> None:
    """Convert a model of 12 blocks of 256 with random weights, by the command, and print its time and peak memory."""
    for conf in CONFS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            command = [
                sys.executable, "-m", "espnet_mla.run", "-m", "espnet2.bin.asr_train", "--dry_run", "true",
                "--config", str(ROOT / f"conf/{conf}.yaml"), "--output_dir", "exp/A", "--token_type", "char",
                "--token_list", "tokens.txt", "--use_amp", "false", "--normalize", "utterance_mvn",
            ]  # fmt: skip
            (folder / "tokens.txt").write_text("".join(f"{token}\n" for token in range(5000)))
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            with contextlib.chdir(folder):
                espnet_mla.register()
                from espnet2.tasks.asr import ASRTask

                model, _ = ASRTask.build_model_from_file("exp/A/config.yaml")
                torch.save(model.state_dict(), "exp/A/valid.acc.ave.pth")
            noise = np.random.default_rng(0)
            for number in range(200):
                soundfile.write(folder / f"{number}.flac", noise.uniform(-0.3, 0.3, int(12.7 * 16000)), 16000, "PCM_16")
            (folder / "wav.scp").write_text("".join(f"{number:03} {number}.flac\n" for number in range(200)))
            began = time.perf_counter()
            done = subprocess.run(
                [
                    sys.executable, "-m", "espnet_mla.cli", "convert", "--asr_model_file", "exp/A/valid.acc.ave.pth",
                    "--kv_lora_rank", "64", "--calibration", "wav.scp", "--output_dir", "exp/A_mla64",
                ],
                cwd=folder, capture_output=True, text=True,
            )  # fmt: skip
            took = time.perf_counter() - began
            if done.returncode:
                raise SystemExit(done.stdout + done.stderr)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"{conf}: {took:.0f} s, {peak:.2f} GiB, {torch.get_num_threads()} threads", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("wer")
    measured.add_argument("--recipe", type=Path, default=RECIPE, help="the folder whose run.sh trains")
    measured.add_argument("--table", action="store_true")
    commands.add_parser("speech").add_argument("recipe", type=Path)
    commands.add_parser("time")
    for name in ("order", "ranks"):
        commands.add_parser(name).add_argument("experiment", type=Path)
    options = parser.parse_args()
    if options.command == "wer":
        wer(options.recipe.absolute(), options.table)
    elif options.command == "speech":
        speech(options.recipe.absolute())
    elif options.command == "order":
        order(options.experiment.absolute())
    elif options.command == "ranks":
        ranks(options.experiment.absolute())
    else:
        timed()


if __name__ == "__main__":
    main()
