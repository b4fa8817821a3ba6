"""ESPnet3's recipe trains the models of the egs2 recipe, and the commands take what it leaves."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from espnet3.systems.esp2_asr import task as espnet3_asr
from espnet3.utils.config_utils import load_and_merge_config
from experiment import DECODING, heard, samples
from omegaconf import OmegaConf
from recipes import ROOT, SHORT, copy_recipe, environment

import espnet_mla
from espnet_mla.common.errors import UserError
from espnet_mla.models.decoder import DECODERS
from espnet_mla.models.distilled import DISTILLED
from espnet_mla.models.encoders import ENCODERS
from espnet_mla.recipe import configuration, run_sh
from espnet_mla.recipe.corpora import CORPORA
from espnet_mla.trained.locate import locate

RECIPE = ROOT / "egs3" / "librispeech_100" / "esp2_asr"
PAIRS = [f"{e}_{a}" for e in ("conformer", "branchformer", "e_branchformer") for a in ("mha", "gqa", "mla", "linear")]
ARCHITECTURE = ("encoder", "encoder_conf", "decoder", "decoder_conf", "model_conf", "frontend_conf", "specaug")


def training(name: str) -> dict:
    """A configuration as ESPnet3 composes it."""
    path = RECIPE / "conf" / f"{name}.yaml"
    return OmegaConf.to_container(load_and_merge_config(path, "training.yaml", "egs3.TEMPLATE.esp2_asr"))


@pytest.mark.parametrize("name", PAIRS)
def test_a_configuration_trains_the_model_of_the_egs2_recipe_in_its_way(name):
    ours, theirs = training(name), yaml.safe_load((ROOT / "conf" / f"{name}.yaml").read_text())
    for key in (*ARCHITECTURE, "specaug_conf"):
        assert ours["model"][key] == theirs[key], key
    assert ours["exp_tag"] == name and ours["task"] == "espnet3.systems.esp2_asr.task.ASRTask"
    assert ours["optimizer"]["lr"] == theirs["optim_conf"]["lr"]
    assert ours["optimizer"]["weight_decay"] == theirs["optim_conf"]["weight_decay"]
    assert ours["scheduler"]["warmup_steps"] == theirs["scheduler_conf"]["warmup_steps"]
    assert ours["trainer"]["max_epochs"] == theirs["max_epoch"]
    assert ours["trainer"]["accumulate_grad_batches"] == theirs["accum_grad"]
    assert ours["best_model_criterion"] == [["valid/acc", theirs["keep_nbest_models"], "max"]]
    assert ours["seed"] == theirs["seed"]


@pytest.mark.parametrize("pair", ["conformer_mha", "conformer_mla"])
def test_the_small_one_is_the_model_that_run_sh_trains_on_the_mini_corpus(pair):
    conf = ROOT / "conf" / f"{pair}.yaml"
    options = configuration.read(str(conf), run_sh._scaling(CORPORA["mini"], conf).split()).options
    ours = training(f"mini_{pair}")
    for key in ARCHITECTURE:
        assert ours["model"][key] == options[key], key
    assert ours["tokenizer"]["vocab_size"] == CORPORA["mini"].nbpe
    assert ours["optimizer"]["lr"] == options["optim_conf"]["lr"]
    assert ours["scheduler"]["warmup_steps"] == options["scheduler_conf"]["warmup_steps"]
    trainer = ours["trainer"]
    assert (trainer["max_epochs"], trainer["limit_train_batches"]) == (
        options["max_epoch"],
        options["num_iters_per_epoch"],
    )
    assert ours["best_model_criterion"][0][1] == options["keep_nbest_models"][0]
    assert ours["stats_dir"] != training(pair)["stats_dir"], "statistics of other features"


def test_register_puts_the_choices_into_espnet3s_task_too():
    espnet_mla.register()
    encoders = espnet3_asr.encoder_choices.classes
    assert {name: encoders[name] for name in ENCODERS if name in encoders} == {
        name: new for name, new in ENCODERS.items() if name in encoders
    }
    assert {"conformer", "branchformer", "e_branchformer", "transformer"} <= ENCODERS.keys() & encoders.keys()
    assert espnet3_asr.decoder_choices.classes["transformer"] is DECODERS["transformer"]
    assert espnet3_asr.model_choices.classes["distilled"] is DISTILLED["asr"]


@pytest.fixture
def experiment(recipe, tmp_path, monkeypatch) -> Path:
    """One that ESPnet3 has trained: it names no output_dir, and its averages by how many they are of."""
    shutil.copytree(recipe, tmp_path / "recipe", symlinks=True)
    monkeypatch.chdir(tmp_path / "recipe")
    folder = Path("exp/asr_tiny")
    (folder / "valid.acc.ave.pth").unlink()
    for number in (9, 12):
        (folder / f"valid.acc.ave_{number}best.pth").write_bytes(b"of fewer, or of an earlier training")
    (folder / "valid.acc.ave_1best.pth").rename(folder / "valid.acc.ave_10best.pth")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {
        "output_dir": None,
        "recipe_dir": ".",
        "exp_dir": "./exp/asr_tiny",
        "best_model_criterion": [["valid/acc", 10, "max"]],
        "task": "espnet3.systems.esp2_asr.task.ASRTask",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder.absolute()


def test_its_experiment_is_loaded_from_wherever_it_is_asked(experiment, recipe, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert heard(espnet_mla.from_pretrained(experiment, **DECODING), samples(recipe)) == expected


def test_an_average_that_is_asked_for_must_be_there(experiment):
    with pytest.raises(
        UserError, match=r"lacks valid\.loss\.ave\.pth; inference_asr_model may be valid\.acc\.ave_10best\.pth"
    ):
        espnet_mla.from_pretrained(experiment, inference_asr_model="valid.loss.ave.pth")
    with pytest.raises(UserError, match="damaged"):
        espnet_mla.from_pretrained(experiment, inference_asr_model="valid.acc.ave_9best.pth")


def test_its_archive_is_found_by_what_it_decodes_with(tmp_path):
    pack = tmp_path / "model_pack"
    (pack / "exp" / "x").mkdir(parents=True)
    (pack / "exp" / "x" / "config.yaml").write_text("encoder: conformer\nctc_conf: {}\ntoken_list: []\n")
    (pack / "exp" / "x" / "valid.acc.ave_10best.pth").touch()
    (pack / "conf").mkdir()
    where = "${recipe_dir}/exp/x/"
    model = {"_target_": "espnet2.bin.asr_inference.Speech2Text", "beam_size": 5} | {
        "asr_train_config": f"{where}config.yaml", "asr_model_file": f"{where}valid.acc.ave_10best.pth"
    }  # fmt: skip
    (pack / "conf" / "inference.yaml").write_text(yaml.safe_dump({"recipe_dir": ".", "model": model}))
    meta = {
        "schema_version": 1,
        "system": "esp2_asr",
        "files": {},
        "yaml_files": {"training_config": "conf/training.yaml"},
    }
    meta["yaml_files"]["inference_config"] = "conf/inference.yaml"
    (pack / "meta.yaml").write_text(yaml.safe_dump(meta))
    found = locate(pack, "valid.acc.ave.pth")
    assert found.packed and found.files == {
        "asr_train_config": pack / "exp" / "x" / "config.yaml",
        "asr_model_file": pack / "exp" / "x" / "valid.acc.ave_10best.pth",
    }
    del model["asr_model_file"]
    (pack / "conf" / "inference.yaml").write_text(yaml.safe_dump({"model": model}))
    with pytest.raises(UserError, match=r"holds no model: its conf/inference\.yaml names only asr_train_config"):
        locate(pack, "valid.acc.ave.pth")
    del meta["yaml_files"]["inference_config"]  # ESPnet3 was not told of one when it packed
    (pack / "meta.yaml").write_text(yaml.safe_dump(meta))
    with pytest.raises(UserError, match=r"holds no model: its meta\.yaml \(no inference_config\) names only no file"):
        locate(pack, "valid.acc.ave.pth")


@pytest.mark.slow
def test_its_stages_run_with_the_choices_and_the_commands_take_what_they_leave(tmp_path):
    """Every stage in ESPnet3's own programs, on synthesised speech, and then each command."""
    from espnet_mla.recipe import mini

    sizes = {"train-clean-100": 24, "dev-clean": 2, "dev-other": 2, "test-clean": 2, "test-other": 2}
    mini.synthesise(tmp_path / "corpus", sizes=sizes, longest=SHORT)
    folder = copy_recipe(RECIPE, tmp_path / "egs3" / "librispeech_100" / "esp2_asr")
    (folder / "conf" / "tiny.yaml").write_text(TINY)
    (folder / "conf" / "tiny_inference.yaml").write_text(TINY_INFERENCE)

    def call(*command: str) -> str:
        variables = environment(LIBRISPEECH=str(tmp_path / "corpus"))
        done = subprocess.run([sys.executable, *command], cwd=folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    stages = ("create_dataset", "train_tokenizer", "collect_stats", "train", "infer", "measure", "pack_model")
    confs = (
        ("training", "tiny"),
        ("inference", "tiny_inference"),
        ("metrics", "metrics"),
        ("publication", "publication"),
    )
    options = [word for role, name in confs for word in (f"--{role}_config", f"conf/{name}.yaml")]
    call("run.py", "--stages", *stages, *options)
    trained = yaml.safe_load((folder / "exp" / "tiny" / "config.yaml").read_text())
    assert trained["normalize"] == "global_mvn", "collecting statistics in the same command takes nothing from training"
    measured = yaml.safe_load((folder / "exp" / "tiny" / "tiny_inference" / "metrics.json").read_text())
    assert {"test-clean", "test-other"} <= set(measured["espnet3.systems.esp2_asr.metrics.wer.WER"])

    cli, calibration = ("-m", "espnet_mla.cli"), folder / "wav.scp"
    audio = sorted((tmp_path / "corpus").rglob("test-clean/**/*.flac"))
    calibration.write_text("".join(f"{path.stem} {path}\n" for path in audio))
    call(*cli, "profile", "--model_tag", "exp/tiny", "--seconds", "2")
    call(*cli, "convert", "--model_tag", "exp/tiny", "--kv_lora_rank", "16", "--calibration", "wav.scp",
         "--output_dir", "exp/latent")  # fmt: skip
    assert not (folder / "exp/latent/finetune.yaml").exists(), "stage 11 would train with another optimiser"
    said = {
        name: call(*cli, "transcribe", name, str(audio[0]), "--beam_size", "2", "--maxlenratio", "0.2")
        for name in ("exp/tiny", "exp/tiny/model_pack", "exp/latent")
    }
    assert said["exp/tiny"] == said["exp/tiny/model_pack"] and said["exp/latent"].startswith(str(audio[0]))


TINY = """
defaults: [mini_conformer_mha, _self_]
tokenizer: {vocab_size: 40}
model:
  encoder_conf: {output_size: 32, linear_units: 32, num_blocks: 1}
  decoder_conf: {linear_units: 16, num_blocks: 1}
best_model_criterion: [[valid/acc, 1, max]]
trainer: {max_epochs: 2, limit_train_batches: 2, accelerator: cpu}
"""
TINY_INFERENCE = """
defaults: [inference, _self_]
model: {asr_model_file: "${exp_dir}/valid.acc.ave_1best.pth", beam_size: 2, maxlenratio: 0.2}
"""
