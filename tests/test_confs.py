"""The confs build what they promise, and within an architecture differ in the attention alone."""

from pathlib import Path

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask

import espnet_mla
from espnet_mla.attention import Attention, Chunks
from espnet_mla.trained import figures

CONF = Path(__file__).parents[1] / "conf"
ARCHITECTURES = ("conformer", "branchformer", "e_branchformer")
KEPT = {"mha": 512, "gqa": 128, "mla": 64, "mtla": 32, "linear": 0}  # numbers a frame and layer
STATE = 4 * (64 + 1) * 64  # numbers a layer that linear attention keeps for a stream: heads (d_head + 1) d_head
PARAMETERS = {  # with BPE 5000; mha of Conformer and E-Branchformer are ESPnet's published 34.23 M and 38.47 M
    "conformer": {"mha": 34_229_520, "gqa": 33_045_264, "mla": 33_240_336, "mtla": 33_265_296, "linear": 33_436_944},
    "branchformer": {"mha": 30_589_200, "gqa": 29_404_944, "mla": 29_600_016, "mtla": 29_624_976, "linear": 29_796_624},
    "e_branchformer": {"mha": 38_471_952, "gqa": 37_287_696, "mla": 37_482_768, "linear": 37_679_376},
}


@pytest.fixture(scope="module")
def token_list(tmp_path_factory):
    espnet_mla.register()
    path = tmp_path_factory.mktemp("tokens") / "tokens.txt"
    path.write_text("\n".join(["<blank>", "<unk>", *(f"t{i}" for i in range(4997)), "<sos/eos>"]))
    return str(path)


def load(architecture, kind):
    return yaml.safe_load((CONF / f"{architecture}_{kind}.yaml").read_text())


@pytest.mark.parametrize(("architecture", "kind"), [(name, kind) for name in PARAMETERS for kind in PARAMETERS[name]])
def test_a_conf_builds_a_model_of_the_size_and_the_cache_that_readme_says(architecture, kind, token_list):
    conf = str(CONF / f"{architecture}_{kind}.yaml")
    model = ASRTask.build_model(ASRTask.get_parser().parse_args(["--config", conf, "--token_list", token_list]))
    attentions = [module for module in model.encoder.modules() if isinstance(module, Attention)]
    assert len(attentions) == 12
    for attention in attentions:
        assert attention.name == kind
        assert attention.project_kv(torch.randn(1, 5, 256)).nbytes_per_frame == 4 * KEPT[kind]
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[architecture][kind]
    kept = figures.model_figures(model.eval(), 16000)["kv_cache"]["encoder"]
    assert kept["bytes_per_frame"] == 12 * 4 * KEPT[kind] and kept["bytes_per_second"] == 25 * 12 * 4 * KEPT[kind]
    assert kept["fixed_bytes"] == (12 * 4 * STATE if kind == "linear" else 0)


@pytest.mark.parametrize(
    ("architecture", "kind", "parameters"),
    [("conformer", "mla", 32_251_152), ("branchformer", "mla", 28_610_832), ("conformer", "mtla", 32_288_592)],
)
def test_a_conf_with_a_latent_decoder_differs_from_the_one_without_in_the_decoder_alone(
    architecture, kind, parameters, token_list
):
    name = f"{architecture}_{kind}_decoder"
    conf, plain = yaml.safe_load((CONF / f"{name}.yaml").read_text()), load(architecture, kind)
    model = ASRTask.build_model(
        ASRTask.get_parser().parse_args(["--config", str(CONF / f"{name}.yaml"), "--token_list", token_list])
    )
    attentions = [module for module in model.decoder.modules() if isinstance(module, Attention)]
    assert [attention.name for attention in attentions] == [kind, "mla"] * 6
    assert all(attention.kv_lora_rank == 64 for attention in attentions)
    for part, choice in (("self", kind), ("src", "mla")):
        assert conf["decoder_conf"].pop(f"{part}_attention_layer_type") == choice
        options = {"kv_lora_rank": 64} | ({"down_rate": 2} if choice == "mtla" else {})
        assert conf["decoder_conf"].pop(f"{part}_attention_conf") == options
    assert conf == plain
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_confs_of_an_architecture_differ_in_the_attention_alone(architecture):
    def others(kind):
        conf = load(architecture, kind)
        for key in ("attention_layer_type", "selfattention_layer_type", "attention_conf", "pos_enc_layer_type"):
            conf["encoder_conf"].pop(key, None)
        return conf

    assert all(others(kind) == others("mha") for kind in PARAMETERS[architecture])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_is_as_in_espnets_recipe(architecture):
    """The values of ESPnet's egs2/librispeech_100/asr1.

    Its e_branchformer conf is silent about cudnn, logging and sorting: there the values are those of its conformer
    conf, so that times of architectures compare.
    """
    conf = load(architecture, "mha")
    assert (conf["cudnn_deterministic"], conf["cudnn_benchmark"], conf["log_interval"]) == (False, False, 400)
    assert conf["sort_in_batch"] == conf["sort_batch"] == "descending"
    assert (conf["optim"], conf["optim_conf"]["lr"], conf["scheduler_conf"]["warmup_steps"]) == ("adam", 0.002, 15000)
    assert (conf["batch_bins"], conf["accum_grad"], conf["max_epoch"]) == (16000000, 4, 70)
    assert (conf["model_conf"]["ctc_weight"], conf["decoder_conf"]["num_blocks"]) == (0.3, 6)


def test_decoding_is_as_in_espnets_recipe():
    conf = yaml.safe_load((CONF / "decode_asr.yaml").read_text())
    assert (conf["beam_size"], conf["ctc_weight"], conf["lm_weight"]) == (20, 0.3, 0.0)


@pytest.mark.parametrize("kind", ["mha", "mla"])
@pytest.mark.parametrize("architecture", ["conformer", "branchformer"])
def test_a_streaming_conf_differs_from_its_twin_in_the_chunks_alone(architecture, kind, token_list):
    name = f"{architecture}_{kind}_streaming"
    conf = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    parser = ASRTask.get_parser()
    model = ASRTask.build_model(parser.parse_args(["--config", str(CONF / f"{name}.yaml"), "--token_list", token_list]))
    assert model.encoder.chunks == Chunks(size=16, left=8)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[architecture][kind]
    assert set(conf["encoder_conf"].pop("streaming")) == {"chunk_size", "left_chunks", "dynamic_chunk_sizes"}
    assert conf == load(architecture, kind)


def test_the_conf_with_look_ahead_differs_from_its_twin_in_the_chunks_alone():
    conf = yaml.safe_load((CONF / "conformer_mla_look_ahead.yaml").read_text())
    assert conf["encoder_conf"].pop("streaming") == {"chunk_size": 16, "left_chunks": 8, "look_ahead": 16}
    assert conf == load("conformer", "mla")


def test_espnets_own_streaming_encoder_has_the_sizes_of_ours():
    theirs = yaml.safe_load((CONF / "contextual_block_conformer.yaml").read_text())
    ours = load("conformer", "mha")
    assert theirs.pop("encoder") == "contextual_block_conformer" and ours.pop("encoder") == "conformer"
    for key in ("block_size", "hop_size", "look_ahead", "init_average", "ctx_pos_enc"):
        theirs["encoder_conf"].pop(key)
    for key in ("selfattention_layer_type", "pos_enc_layer_type", "rel_pos_type"):
        ours["encoder_conf"].pop(key)
    assert theirs == ours
