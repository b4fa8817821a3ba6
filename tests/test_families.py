"""Each family of ESPnet's models is decoded as plain ESPnet decodes it, converted without loss, measured and packed.

docs/models.md says so; its table is held to `families.FAMILIES` here.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import families
import numpy as np
import pytest
import soundfile
import torch
import yaml

import espnet_mla
from espnet_mla.common.errors import UserError
from espnet_mla.convert import calibration, distill_command
from espnet_mla.convert import command as convert
from espnet_mla.measure import profile
from espnet_mla.recipe import decoding, stages
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse
from espnet_mla.trained import transcribe

HEARING = [name for name, (task, _) in families.FAMILIES.items() if task != "mt"]
DISTILLED = [name for name, (task, _) in families.FAMILIES.items() if task != "mt"]
ALL_MODULES = "encoder,decoder_self,decoder_src"
MODULES = {name: "encoder" if name == "s2t_ctc" else ALL_MODULES for name in families.FAMILIES}


def some(names: Iterable[str], *quick: str) -> list:
    """All of them, of which only these are tested when there is little time."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


IN_DOCS = {
    "speech recognition": "asr", "OWSM": "s2t", "OWSM-CTC": "s2t_ctc", "speech translation": "st",
    "with a hierarchical encoder": "st_hierarchical", "with two decoders": "st_multidecoder",
    "spoken language understanding": "slu", "with a postencoder": "slu_postencoder", "machine translation": "mt",
}  # fmt: skip
"""What the table of docs/models.md calls each."""


@pytest.fixture(scope="session")
def built(build_once) -> Path:
    """The folder with a model of each family, and `plain.json`: what plain ESPnet makes of them. Not to be changed."""

    def build(folder: Path) -> None:
        families.build(folder)
        done = subprocess.run(
            [sys.executable, families.__file__], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (folder / "plain.json").write_text(done.stdout.splitlines()[-1])

    return build_once("families", build)


@pytest.fixture
def folder(built, tmp_path):
    """A copy of it, the current folder."""
    espnet_mla.register()
    copy = Path(shutil.copytree(built, tmp_path / "models"))
    with contextlib.chdir(copy):
        yield copy


def assert_same(found: list, expected: list) -> None:
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=2e-4)


def decoded(name: str, experiment: str | Path, **options) -> list:
    options = families.DECODING | families.DECODING_OF.get(families.FAMILIES[name][0], {}) | options
    return families.hypotheses(espnet_mla.from_pretrained(experiment, **options), families.given(Path(), name))


def kept(experiment: str) -> dict:
    return json.loads(Path(f"exp/{experiment}/figures.json").read_text())["kv_cache"]


def test_the_table_of_the_docs_says_what_is_tested_here():
    page = (Path(__file__).parents[1] / "docs/models.md").read_text()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    rows = {IN_DOCS[family]: row for family, *row in cells[2:]}
    assert rows == {
        name: [f"`{task}`", "yes", MODULES[name].replace(",", ", "), *["yes" if name in HEARING else "no"] * 2,
               "yes" if name in DISTILLED else "no"]
        for name, (task, _) in families.FAMILIES.items()
    }  # fmt: skip


@pytest.mark.parametrize("name", families.FAMILIES)
def test_registered_it_decodes_as_plain_espnet(name, folder):
    assert_same(decoded(name, f"exp/{name}"), json.loads(Path("plain.json").read_text())[name])


@pytest.mark.parametrize("name", some(families.FAMILIES, "s2t", "s2t_ctc", "mt", "st_hierarchical"))
def test_converted_at_full_rank_it_decodes_the_same_with_half_the_cache(name, folder):
    before = decoded(name, f"exp/{name}")
    modules = MODULES[name]
    file = f"--{'s2t' if name == 's2t_ctc' else name.partition('_')[0]}_model_file"
    for rank, place in ((32, "full"), (8, "quarter")):
        arguments = [file, f"exp/{name}/valid.acc.ave.pth", "--modules", modules, "--kv_lora_rank", str(rank)]
        assert convert.main([*arguments, "--output_dir", f"exp/{place}"]) == 0
    assert_same(decoded(name, "exp/full"), before)
    for part in modules.split(","):
        unit = "token" if part == "decoder_self" else "frame"
        sizes = [kept(place)[part][f"bytes_per_{unit}"] for place in ("full", "quarter")]
        assert sizes == [2 * 32 * 4, 2 * 8 * 4], "two layers; ESPnet's keep twice the width in float32"


@pytest.mark.parametrize("name", some(HEARING, "s2t", "s2t_ctc"))
def test_calibrated_on_speech_the_error_at_full_rank_is_rounding(name, folder):
    Path("data").mkdir()
    Path("data/wav.scp").write_text("utt speech.flac\n")
    Path("data/text").write_text("utt THE CAT SAT ON THE MAT\n")
    modules = MODULES[name]
    arguments = ["--model_tag", f"exp/{name}", "--modules", modules, "--kv_lora_rank", "32"]
    assert convert.main([*arguments, "--calibration", "data/wav.scp", "--output_dir", "exp/converted"]) == 0
    layers = json.loads(Path("exp/converted/conversion.json").read_text())["layers"]
    assert len(layers) == 2 * len(modules.split(","))
    assert max(layer["relative_error"] for layer in layers) < 1e-5


def write_speech(number: int) -> None:
    """wav.scp of noise, and text beside it."""
    rng, names = np.random.default_rng(1), [f"u{n:02}" for n in range(number)]
    for n, name in enumerate(names):
        soundfile.write(f"{name}.flac", rng.uniform(-0.3, 0.3, 9000 + 500 * n), 16000)
    Path("wav.scp").write_text("".join(f"{name} {name}.flac\n" for name in names))
    Path("text").write_text("".join(f"{name} THE CAT\n" for name in names))


@pytest.mark.parametrize("name", some(DISTILLED, "s2t"))
def test_distilled_it_comes_nearer_to_its_original(name, folder):
    write_speech(12)
    modules = MODULES[name]
    arguments = ["--model_tag", f"exp/{name}", "--modules", modules, "--kv_lora_rank", "2", "--output_dir", "exp/new"]
    ways = ["--distill", "wav.scp", "--epochs", "4", "--lr", "0.0005", "--batch_bins", "100000"]
    assert convert.main([*arguments, *ways]) == 0
    distilled = json.loads(Path("exp/new/conversion.json").read_text())["distillation"]
    assert distilled["loss_after"] < 0.95 * distilled["loss_before"]
    assert ("kl_decoder" in Path("exp/new/distill/train.log").read_text()) == ("decoder" in modules)
    assert decoded(name, "exp/new")


def test_a_decoder_that_is_told_what_to_do_learns_over_texts_that_say_it(folder, capsys):
    write_speech(12)
    told, ways = ("--lang_sym", "deu", "--task_sym", "st_deu"), ("--epochs", "1", "--lr", "0.0001", "--text", "text")
    modules = ("--modules", "decoder_self", "--kv_lora_rank", "2", "--output_dir", "exp/new")
    assert convert.main(["--model_tag", "exp/s2t", *modules, *told, "--distill", "wav.scp", *ways]) == 0
    task = families.task_class("s2t")
    args = task.get_parser().parse_args(["--config", "exp/new/distill/distill.yaml"])
    preprocess = task.build_preprocess_fn(args, True)
    text = Path("exp/new/distill/data/train/text").read_text().splitlines()[0].split(" ", 1)[1]
    assert text == "<deu><st_deu><notimestamps> THE CAT"
    seen = {tuple(preprocess("u00", {"text": text})["text"].tolist()[:4]) for _ in range(30)}
    tokens = yaml.safe_load(Path("exp/s2t/config.yaml").read_text())["token_list"]
    assert [[tokens[n] for n in ids][:3] for ids in seen] == [["<deu>", "<st_deu>", "<notimestamps>"]]
    assert all(tokens[ids[3]] != "<notimestamps>" for ids in seen)
    # Its conversion remembers what it was told, and a training that goes on does not take another.
    again = ("exp/new", "--speech", "wav.scp", *ways)
    assert "other options (model_conf)" in refused(capsys, distill_command.main, *again, "--lang_sym", "eng")
    assert "<xyz> is no token" in refused(capsys, distill_command.main, *again, "--lang_sym", "xyz")
    assert json.loads(Path("exp/new/conversion.json").read_text())["prompt"]["lang_sym"] == "<deu>"


def test_the_second_of_two_decoders_is_calibrated_on_the_states_of_the_first(folder):
    """As ESPnet decodes: it attends to a state for each word that was heard, not to the frames."""
    model, args = families.task_class("st").build_model_from_file("exp/st_multidecoder/config.yaml")
    Path("wav.scp").write_text("utt speech.flac\n")
    Path("text").write_text("utt THE CAT\n")
    attended = []
    for module in (model.encoder, model.md_encoder, model.decoder):
        module.register_forward_hook(lambda _, inputs, outputs: attended.append((inputs[0], outputs[0])))
    calibration.prepare(Path("wav.scp"), 1, args, with_text=True).run(model.eval(), args, "calibration")
    (_, frames), (states, again), (given, _) = attended
    with torch.inference_mode():
        heard = model.ctc.argmax(frames)[0].unique_consecutive()
    assert states.shape[1] == 1 + len(heard[heard != 0]) != frames.shape[1] and torch.equal(given, again)


@pytest.mark.slow
def test_a_translation_learns_by_both_ctcs_and_by_labels(folder):
    config = yaml.safe_load(Path("exp/st/config.yaml").read_text())
    for conf, more, wanted in (
        ({"st_mtlalpha": 0.5, "asr_weight": 0.3, "mtlalpha": 0.3}, (), {"kl_ctc", "kl_st_ctc", "kl_decoder"}),
        ({"st_mtlalpha": 0.5}, ("--text", "text", "--labels", "1"), {"kl_st_ctc", "kl_decoder", "loss_st_att"}),
        ({"st_mtlalpha": 1.0}, (), {"kl_st_ctc"}),
    ):
        Path("exp/st/config.yaml").write_text(yaml.safe_dump(config | {"model_conf": conf}))
        model, _ = families.task_class("st").build_model_from_file("exp/st/config.yaml")
        torch.save(model.state_dict(), "exp/st/valid.acc.ave.pth")
        write_speech(12)
        modules = "encoder" if conf["st_mtlalpha"] == 1 else "encoder,decoder_self"
        to = ("--modules", modules, "--kv_lora_rank", "2", "--output_dir", "exp/new", "--overwrite")
        ways = ("--distill", "wav.scp", "--epochs", "2", "--lr", "0.0005", "--batch_bins", "100000", *more)
        assert convert.main(["--model_tag", "exp/st", *to, *ways]) == 0
        log = Path("exp/new/distill/train.log").read_text()
        assert {name for name in ("kl_ctc", "kl_st_ctc", "kl_decoder", "loss_st_att") if f"{name}=" in log} == wanted


@pytest.mark.parametrize("name", some(HEARING))
def test_it_is_profiled_and_transcribes(name, folder, capsys):
    Path("wav.scp").write_text("utt speech.flac\n")
    lengths = [] if name == "s2t" else ["--seconds", "2"]
    arguments = ["--model_tag", f"exp/{name}", "--wav_scp", "wav.scp", "--beam_size", "2", "--maxlenratio", "0.2"]
    assert profile.main([*arguments, *lengths]) == 0
    figures = json.loads(Path(f"exp/{name}/figures.json").read_text())
    assert figures["encoder"].keys() == figures["cache"].keys() == {"2"}
    assert figures["decoding"]["utterances"] == 1
    assert ("decoder_src" in figures["kv_cache"]) == (name != "s2t_ctc")
    capsys.readouterr()
    assert transcribe.main([f"exp/{name}", "speech.flac", "--maxlenratio", "0.2", "--device", "cpu"]) == 0
    file, text = capsys.readouterr().out.rstrip("\n").split("\t")
    assert file == "speech.flac" and "<asr>" not in text


def transcribed(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert transcribe.main([*arguments, "--device", "cpu", "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_owsm_predicts_times_and_decodes_long_recordings_as_espnet(folder, capsys):
    speech = families.given(folder, "s2t")
    soundfile.write("long.flac", np.tile(speech, 4), 16000)
    flags = ("--beam_size", "2", "--maxlenratio", "0.5")
    model = espnet_mla.from_pretrained("exp/s2t", beam_size=2, maxlenratio=0.5, predict_time=True, lang_sym="<deu>")
    found = transcribed(capsys, "exp/s2t", "speech.flac", "--predict_time", "--lang_sym", "deu", *flags)
    assert found["segments"] == [
        {"start": start, "end": end, "text": text}
        for start, end, text in model.window_utterances(model(speech)[0][2])
    ]  # fmt: skip
    for name in ("s2t", "s2t_ctc"):
        model = espnet_mla.from_pretrained(f"exp/{name}", beam_size=2, maxlenratio=0.5)
        expected = model.decode_long("long.flac")
        found = transcribed(capsys, f"exp/{name}", "long.flac", "--long", *flags)
        assert [(one["start"], one["end"], one["text"]) for one in found["segments"]] == [
            (pytest.approx(start, abs=1e-3), pytest.approx(end, abs=1e-3), text.strip())
            for start, end, text in expected
        ]  # fmt: skip


def test_stage_12_refuses_a_model_of_text(folder):
    arguments = ("--train_set", "train", "--valid_set", "dev", "--test_sets", "test", "--asr_exp", "exp/mt")
    with pytest.raises(UserError, match=r"exp/mt has a model for machine translation \(MT\), which takes text"):
        decoding.check(Layout(parse([*arguments]), arguments))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s2t", "st", "slu_postencoder"])
def test_the_recipe_decodes_scores_and_packs_what_lies_in_an_experiment(name, folder):
    espnets = families.FAMILIES[name][0]
    data = Path("dump/raw/test")
    data.mkdir(parents=True)
    for file, value in (("wav.scp", "speech.flac"), ("text", "THE CAT SAT"), ("utt2spk", "speaker")):
        (data / file).write_text(f"utt {value}\n")
    (data / "feats_type").write_text("raw\n")
    (data / "audio_format").write_text("flac\n")
    arguments = (
        "--train_set", "train", "--valid_set", "dev", "--test_sets", "test", "--ngpu", "0", "--asr_exp", f"exp/{name}",
        "--inference_nj", "1", "--gpu_inference", "false", "--inference_args", "--beam_size 3 --maxlenratio 0.3",
        "--stage", "12", "--stop_stage", "14", "--skip_packing", "false",
    )  # fmt: skip
    at = Layout(parse([*arguments]), arguments)
    stages.perform(at)
    found = at.decode_dir("test")
    (utterance, *tokens) = (found / "token_int").read_text().split()
    best = json.loads(Path("plain.json").read_text())[name][0][0]
    assert (utterance, [int(token) for token in tokens]) == ("utt", best)
    hypothesis = (found / "score_wer/hyp.trn").read_text()
    assert "<" not in hypothesis and "/test|1|3|" in Path(f"exp/{name}/RESULTS.md").read_text()
    assert yaml.safe_load(zipfile.ZipFile(at.packed_model).read("meta.yaml"))["files"].keys() == {
        f"{espnets}_model_file"
    }
    assert_same(decoded(name, at.packed_model), json.loads(Path("plain.json").read_text())[name])


def refused(capsys, main, *arguments: str) -> str:
    """The error of a command that fails, which is one line."""
    try:
        status = main([*arguments])
    except SystemExit as ended:
        status = ended.code
    assert status in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    return line.partition("error: ")[2]


def test_wrong_symbols_are_named_before_anything_is_decoded(folder, capsys):
    assert refused(capsys, transcribe.main, "exp/s2t", "speech.flac", "--device", "cpu", "--lang_sym", "fra") == (
        "lang_sym: <fra> is no token of the model; it has " + ", ".join(["<blank>", "<unk>", *families.SYMBOLS][:20])
    )
    Path("data").mkdir()
    Path("data/wav.scp").write_text("utt speech.flac\n")
    Path("data/text").write_text("utt THE CAT\n")
    to_mla = ("--kv_lora_rank", "8", "--output_dir", "exp/new", "--calibration", "data/wav.scp", "--task_sym", "sing")
    for name, modules in (("s2t", "encoder,decoder_src"), ("s2t_ctc", "encoder")):
        error = refused(capsys, convert.main, "--model_tag", f"exp/{name}", "--modules", modules, *to_mla)
        assert error.startswith("task_sym: <sing> is no token of the model; it has ")


def test_what_a_family_does_not_take_is_one_line(folder, capsys):
    with_speech = ("--kv_lora_rank", "8", "--output_dir", "exp/new", "--calibration", "wav.scp")
    error = refused(capsys, convert.main, "--model_tag", "exp/asr", "--lang_sym", "eng", *with_speech)
    assert error == (
        "--lang_sym eng: only a model for speech to text with prompts (S2T) takes it; this one is for speech "
        "recognition (ASR)"
    )
    for main, arguments in (
        (convert.main, ("--mt_model_file", "exp/mt/valid.acc.ave.pth", *with_speech)),
        (profile.main, ("--model_tag", "exp/mt")),
        (transcribe.main, ("exp/mt", "speech.flac", "--device", "cpu")),
    ):
        assert "is a model for machine translation (MT), which takes text; here only audio is" in refused(
            capsys, main, *arguments
        )
    error = refused(capsys, transcribe.main, "exp/st", "speech.flac", "--device", "cpu", "--ctc_weight", "0.3")
    assert error == ("ctc_weight: 0.3: the model has no CTC of the translation (model_conf: st_mtlalpha: 0): give 0")
    error = refused(capsys, profile.main, "--model_tag", "exp/s2t", "--seconds", "1", "10")
    assert error == "--seconds 10: this model hears 2 s, to which all speech is padded"
    Path("wav.scp").write_text("utt speech.flac\n")
    distilled = ("--kv_lora_rank", "8", "--output_dir", "exp/new", "--distill", "wav.scp")
    Path("text").write_text("utt THE CAT\n")
    for name, more, problem in (
        ("s2t", ("--labels", "1"), "--labels 1: ESPnet's loss of a model for speech to text with prompts (S2T) needs"),
        ("s2t_ctc", (), "exp/s2t_ctc/config.yaml has no decoder of kind transformer, which alone would learn from it"),
        ("st", ("--labels", "1"), "needs transcripts besides the translations (model_conf: asr_weight: 0.3)"),
    ):
        assert problem in refused(
            capsys, convert.main, "--model_tag", f"exp/{name}", *distilled, "--text", "text", *more
        )
        assert not Path("exp/new").exists()


def test_a_model_that_takes_a_transcript_too_is_refused(folder, capsys):
    config = yaml.safe_load(Path("exp/slu/config.yaml").read_text())
    Path("exp/slu/config.yaml").write_text(yaml.safe_dump(config | {"postdecoder": "hugging_face_transformers"}))
    error = refused(capsys, transcribe.main, "exp/slu", "speech.flac", "--device", "cpu")
    assert "exp/slu: postdecoder: hugging_face_transformers: this model takes a transcript besides the audio" in error


@pytest.mark.parametrize("key", ["slu", "asr"])
def test_an_archive_may_have_the_names_of_another_task(key, folder):
    """ESPnet's own recipe of SLU packs its model as one of ASR."""
    Path("packed").mkdir()
    for file in ("config.yaml", "valid.acc.ave.pth"):
        shutil.copyfile(f"exp/slu/{file}", f"packed/{file}")
    shutil.copyfile("bpe.model", "packed/bpe.model")
    files = {"yaml_files": {f"{key}_train_config": "config.yaml"}, "files": {f"{key}_model_file": "valid.acc.ave.pth"}}
    Path("packed/meta.yaml").write_text(yaml.safe_dump(files))
    assert_same(decoded("slu", "packed"), decoded("slu", "exp/slu"))


def test_the_models_file_is_named_as_the_tasks_recipe_names_it(folder):
    Path("exp/s2t/valid.acc.ave.pth").rename("exp/s2t/other.pth")
    expected = json.loads(Path("plain.json").read_text())["s2t"]
    assert_same(decoded("s2t", "exp/s2t", inference_s2t_model="other.pth"), expected)


@pytest.mark.parametrize("name", ["s2t", "s2t_ctc"])
def test_labels_and_prompts_of_owsms_own_recipe_reach_a_model_that_learns(name, folder):
    task = families.task_class(name)
    config = yaml.safe_load(Path(f"exp/{name}/config.yaml").read_text())
    file = str(Path(f"exp/{name}/valid.acc.ave.pth").absolute())
    config |= {"model": "distilled", "model_conf": config["model_conf"] | {"teacher": file, "labels": 1.0}}
    if name == "s2t_ctc":
        config["model_conf"]["ctc_asr_only"] = [False, False]
    Path("config.yaml").write_text(yaml.safe_dump(config))
    model, _ = task.build_model_from_file("config.yaml", file)
    tokens = config["token_list"]
    ids = torch.tensor([[tokens.index(token) for token in ("<deu>", "<asr>", "<notimestamps>")] + [3, 4]])
    batch = {"text": ids, "text_prev": torch.tensor([[tokens.index("<na>")]]), "text_ctc": ids[:, 3:]}
    if name == "s2t_ctc":
        batch["prefix"] = ids[:, :2]
    batch |= {f"{key}_lengths": torch.tensor([value.shape[1]]) for key, value in batch.items()}
    speech = torch.randn(1, 40000)
    heard = []
    handle = model.encoder.register_forward_pre_hook(
        lambda _, given, named: heard.append((*given, *named.values())), with_kwargs=True
    )
    loss, stats, _ = model(speech, torch.tensor([40000]), **batch)
    handle.remove()
    assert float(stats["output"]) < 1e-8, "it is its own teacher, told the same"
    assert float(loss) == pytest.approx(float(stats["labels"]), rel=1e-4) and float(loss) > 0.1
    ours, espnets = ([x for x in given if isinstance(x, torch.Tensor)] for given in heard)
    assert len(ours) >= 2 and all(torch.equal(*pair) for pair in zip(ours, espnets, strict=True))
