"""run.sh: what the user gives wins, the rest follows from the corpus, and a configuration is read as YAML."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.common.machine import CORES
from espnet_mla.recipe import data, run_sh
from espnet_mla.recipe import options as recipe_options
from espnet_mla.recipe.corpora import CORPORA
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse

CONF = Path(__file__).parents[1] / "conf"
CONFS = sorted(path.name for path in CONF.glob("*.yaml") if path.name != "decode_asr.yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of a recipe, with nothing in it but the confs."""
    (tmp_path / "conf").symlink_to(CONF)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(*arguments: str) -> dict[str, str]:
    return run_sh.asr_sh_options(arguments)[1]


@pytest.mark.parametrize("conf", CONFS)
def test_librispeech_gets_each_configuration_as_it_is_and_the_names_of_espnets_recipe(conf):
    given = options("--asr_config", f"conf/{conf}")
    assert given["asr_config"] == f"conf/{conf}" and "asr_args" not in given and "asr_tag" not in given
    layout = Layout(parse(run_sh.as_arguments(given)))
    assert str(layout.asr_exp) == f"exp/asr_{conf.removesuffix('.yaml')}_raw_en_bpe5000_sp"
    assert (layout.train_set, layout.valid_set) == ("train_clean_100_sp", "dev")
    assert layout.test_sets == ("test_clean", "test_other", "dev_clean", "dev_other")
    assert layout.settings.local_data_opts == "--corpus librispeech_100"


NARROW = {
    "conformer": {"linear_units=384", "cnn_module_kernel=7"},
    "contextual_block_conformer": {"linear_units=384", "cnn_module_kernel=7"},
    "branchformer": {"cgmlp_linear_units=576", "cgmlp_conv_kernel=7"},
    "e_branchformer": {
        "linear_units=384", "cgmlp_linear_units=576", "cgmlp_conv_kernel=7", "merge_conv_kernel=7"
    },
}  # fmt: skip


@pytest.mark.parametrize("conf", CONFS)
def test_mini_scales_each_configuration_down_and_leaves_that_out_of_the_name(conf):
    given = options("--corpus", "mini", "--asr_config", f"conf/{conf}", "--asr_args", "--max_epoch 2")
    words = given["asr_args"].split()
    pairs = list(zip(words[::2], words[1::2], strict=True))
    encoder = next(name for name in sorted(NARROW, key=len, reverse=True) if conf.startswith(name))
    rates = {(name, value) for name, value in pairs if "dropout" in value}
    config = yaml.safe_load((CONF / conf).read_text())
    assert rates == {
        (f"--{part}", f"{name}=0")
        for part in ("encoder_conf", "decoder_conf")
        for name in config[part]
        if "dropout" in name
    }
    scaled = {value for name, value in pairs if name == "--encoder_conf" and "dropout" not in value}
    latent = {"attention_conf.kv_lora_rank=24"} if re.search("_mt?la", conf) else set()
    assert scaled == {"output_size=96", "num_blocks=4", *NARROW[encoder], *latent}
    of_decoder = {value for name, value in pairs if name == "--decoder_conf" and "rank" in value}
    both = {"self_attention_conf.kv_lora_rank=24", "src_attention_conf.kv_lora_rank=24"}
    assert of_decoder == (both if conf.endswith("_decoder.yaml") else set())
    assert ("--specaug", "none") in pairs and pairs[-1] == ("--max_epoch", "2")
    assert given["asr_tag"] == f"{conf.removesuffix('.yaml')}_raw_en_bpe60_max_epoch2"
    assert (given["inference_args"], given["test_sets"]) == ("--beam_size 5", "test_clean test_other test_noisy")
    assert "speed_perturb_factors" not in given and given["local_data_opts"] == "--corpus mini"


@pytest.mark.parametrize(
    "line",
    ["encoder: branchformer", 'encoder: "branchformer"', "encoder:  branchformer  # two", "{encoder: branchformer}"],
)
def test_the_encoder_is_read_as_yaml_reads_it(folder, line):
    (folder / "mine.yaml").write_text(f"{line}\n")
    given = options("--corpus", "mini", "--asr_config", "mine.yaml")
    assert "--encoder_conf cgmlp_linear_units=576" in given["asr_args"]
    assert given["asr_config"] == "../mine.yaml"  # from mini/


def test_sizes_of_an_attention_keep_their_share_of_the_width_and_stay_even(folder):
    sizes = {"kv_lora_rank": 32, "q_lora_rank": 100, "qk_rope_head_dim": 7, "v_head_dim": "auto"}
    conf = {"encoder": "conformer", "encoder_conf": {"output_size": 512, "attention_conf": sizes}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(conf))
    words = options("--corpus", "mini", "--asr_config", "mine.yaml")["asr_args"].split()
    found = {word for word in words if word.startswith("attention_conf.")}
    assert found == {f"attention_conf.{size}" for size in ("kv_lora_rank=6", "q_lora_rank=18", "qk_rope_head_dim=2")}


@pytest.mark.parametrize(
    "text", ["encoder_conf: 3", "encoder_conf:", "encoder_conf: {output_size: 0, attention_conf: [1]}"]
)
def test_scaling_leaves_a_wrong_part_to_training_which_names_what_is_wrong(folder, text):
    (folder / "mine.yaml").write_text(f"encoder: conformer\n{text}\n")
    assert "cnn_module_kernel=7" in options("--corpus", "mini", "--asr_config", "mine.yaml")["asr_args"]


@pytest.mark.parametrize("rank", ["0", "-8", "true", "64.5", "many"])
def test_scaling_never_makes_a_wrong_size_a_right_one(folder, rank):
    (folder / "mine.yaml").write_text(
        f"encoder: conformer\nencoder_conf: {{attention_conf: {{kv_lora_rank: {rank}}}}}\n"
    )
    assert "kv_lora_rank" not in options("--corpus", "mini", "--asr_config", "mine.yaml")["asr_args"]


def test_a_configuration_that_is_not_yaml_is_named(folder):
    (folder / "mine.yaml").write_text("encoder: [\n")
    with pytest.raises(UserError, match="mine.yaml cannot be read"):
        options("--corpus", "mini", "--asr_config", "mine.yaml")


@pytest.mark.parametrize("prefix", ["mini/", "./mini/", "", "mini/../mini/", "{}/mini/"])
def test_a_configuration_of_a_model_that_mini_trained_is_small_already_however_its_path_is_spelt(folder, prefix):
    config = folder / "mini/exp/A/x.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("encoder: conformer\n")
    given = options(
        "--corpus", "mini", "--asr_config", f"{prefix.format(folder)}exp/A/x.yaml", "--asr_args", "--max_epoch 2"
    )
    assert given["asr_args"] == "--max_epoch 2"
    assert (folder / "mini" / given["asr_config"]).samefile(config)
    assert given["asr_tag"] == "x_raw_en_bpe60_max_epoch2"


def test_paths_below_mini_are_named_from_there_for_the_stages():
    given = options("--corpus", "mini", "--pretrained_model", "mini/exp/A/model.pth", "--asr_exp", "./mini/exp/tuned")
    assert (given["pretrained_model"], given["asr_exp"]) == ("exp/A/model.pth", "exp/tuned")


def test_a_path_is_one_below_mini_by_where_it_leads_and_not_by_how_it_is_spelt(folder):
    (folder / "elsewhere").mkdir()
    (folder / "mini").symlink_to("elsewhere")
    (folder / "mini/exp/A").mkdir(parents=True)
    (folder / "mini/exp/A/x.yaml").write_text("encoder: conformer\n")
    for path in ("mini/exp/A/x.yaml", "elsewhere/exp/A/x.yaml", "./mini//exp/../exp/A/x.yaml"):
        given = options("--corpus", "mini", "--asr_config", path)
        assert "asr_args" not in given or not given["asr_args"]
        assert given["asr_config"] == "exp/A/x.yaml"
    several = options("--corpus", "mini", "--bpe_train_text", "mini/a.txt ./mini/b.txt c.txt",
                      "--pretrained_model", "mini/../mini/exp/A/m.pth:encoder:encoder")  # fmt: skip
    assert several["bpe_train_text"] == "a.txt b.txt c.txt"
    assert several["pretrained_model"] == "exp/A/m.pth:encoder:encoder"


def test_only_paths_are_taken_for_paths(folder):
    given = options("--corpus", "mini", "--hf_repo", "mini/model", "--bpe_nlsyms", "<a>,</a>//", "--asr_tag", "mini/x")
    assert (given["hf_repo"], given["bpe_nlsyms"], given["asr_tag"]) == ("mini/model", "<a>,</a>//", "mini/x")


def test_files_of_the_users_are_found_from_mini_and_the_folders_of_the_stages_are_minis(folder):
    for name in ("my decode.yaml", "symbols.txt", "data/train_clean_100/text", "exp/A/model.pth"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    given = options("--corpus", "mini", "--inference_config", "my decode.yaml", "--nlsyms_txt", "symbols.txt",
                    "--pretrained_model", "exp/A/model.pth", "--expdir", "exp")  # fmt: skip
    assert (given["inference_config"], given["nlsyms_txt"]) == ("../my decode.yaml", "../symbols.txt")
    assert given["bpe_train_text"] == "data/train_clean_100/text"  # of mini, which stage 1 makes
    assert (given["pretrained_model"], given["expdir"]) == ("exp/A/model.pth", "exp")


def test_a_path_through_the_link_to_conf_is_scaled_all_the_same(folder):
    (folder / "mini").mkdir()
    (folder / "mini/conf").symlink_to("../conf")
    given = options("--corpus", "mini", "--asr_config", "mini/conf/conformer_mla.yaml")
    assert given["asr_config"] == "conf/conformer_mla.yaml" and "num_blocks=4" in given["asr_args"]


def test_options_are_read_with_a_space_or_an_equals_sign_and_the_last_one_wins():
    given = options(
        "--corpus=mini", "--token-type=char", "--asr_args=--a b=c", "--asr_args", "--d 'e f'", "--stage", "3"
    )
    assert given["asr_args"].endswith(" --d 'e f'") and "b=c" not in given["asr_args"]
    assert given["asr_tag"] == "branchformer_mla_raw_en_char_d'ef'" and given["stage"] == "3"
    assert options("--corpus", "mini", "--asr_tag", "mine", "--nbpe", "70")["asr_tag"] == "mine"
    assert options("--corpus", "mini", "--speed_perturb_factors", "0.9 1.0")["asr_tag"].endswith("bpe60_sp")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--corpus", "timit"], "--corpus timit: valid are librispeech_100 and mini"),
    (["--asr_args"], "--asr_args lacks its value"), (["conf/x.yaml"], "'conf/x.yaml' stands alone"),
])  # fmt: skip
def test_wrong_options_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        options(*arguments)


def test_every_corpus_has_its_preparation_and_a_folder_that_no_other_has():
    assert set(data.PREPARE) == set(CORPORA)
    assert len({corpus.folder for corpus in CORPORA.values()}) == len(CORPORA)


def test_without_the_package_run_sh_says_how_to_get_it(folder):
    recipe, programs = folder / "egs2/x/asr1", folder / "bin"
    (recipe / "local").mkdir(parents=True)
    programs.mkdir()
    for name in ("run.sh", "path.sh"):
        shutil.copy(CONF.parent / "egs2/librispeech_100/asr1" / name, recipe)
    (programs / "python3").write_text("#!/bin/sh\nexit 1\n")
    (programs / "python3").chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run([recipe / "run.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: python3 has no espnet_mla; setup_environment.sh") and not done.stdout


def test_help_names_the_corpora_and_the_options_of_asr_sh():
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(CONF.parent)
    script = CONF.parent / "egs2/librispeech_100/asr1/run.sh"
    done = subprocess.run([script, "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "librispeech_100 or mini" in done.stdout and "--inference_nj" in done.stdout


def test_a_gpu_trains_and_all_decode_in_batches_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(run_sh, "visible_gpus", lambda: ("0", "1"))
    monkeypatch.setattr(recipe_options, "visible_gpus", lambda: ("0", "1"))
    expected = {"ngpu": "1", "gpu_inference": "true", "inference_nj": "4", "batch_size": "8"}
    assert run_sh._hardware_options({}).items() >= expected.items()
    on_cores = {"gpu_inference": "false", "inference_nj": str(CORES), "batch_size": "1"}
    assert run_sh._hardware_options({"gpu_inference": "false"}).items() >= on_cores.items()
    monkeypatch.setattr(run_sh, "visible_gpus", tuple)
    assert run_sh._hardware_options({}).items() >= (on_cores | {"ngpu": "0"}).items()


def test_links_that_are_right_are_left_alone(folder):
    run_sh._link(Path("mini"))
    before = {name: os.lstat(folder / "mini" / name).st_ino for name in run_sh.LINKS}
    run_sh._link(Path("mini"))
    assert before == {name: os.lstat(folder / "mini" / name).st_ino for name in run_sh.LINKS}
    assert os.readlink(folder / "mini/conf") == "../conf"
