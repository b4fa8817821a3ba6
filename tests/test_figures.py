"""figures.json: what a model keeps and has, read off its own caches and parameters."""

import json

import pytest
import torch
from espnet2.tasks.asr import ASRTask

import espnet_mla
from espnet_mla.trained import figures

D, LAYERS = 32, 2
KEPT = {  # numbers a frame and layer, as docs/configuration.md's table has them
    "mha": ({}, 2 * D),
    "gqa": ({"num_kv_heads": 1}, 2 * D // 4),
    "mla": ({"kv_lora_rank": 6}, 6),
    "linear": ({}, 0),
}


def model(kind, conf, **decoder_conf):
    espnet_mla.register()
    position = "rope" if kind == "linear" else "rel_pos"
    parser = ASRTask.get_parser()
    args = parser.parse_args(
        ["--encoder", "conformer", "--decoder", "transformer", "--token_list", "unused", "--normalize", "utterance_mvn"]
    )
    args.token_list = ["<blank>", "<unk>", "A", "B", "<sos/eos>"]
    args.frontend_conf = {"n_fft": 512, "hop_length": 160}
    args.encoder_conf = {
        "output_size": D, "num_blocks": LAYERS, "linear_units": 8, "selfattention_layer_type": kind,
        "pos_enc_layer_type": position, "attention_conf": conf,
    }  # fmt: skip
    args.decoder_conf = {"linear_units": 8, "num_blocks": 1, **decoder_conf}
    args.specaug_conf, args.normalize_conf, args.model_conf, args.ctc_conf = {}, {}, {}, {}
    return ASRTask.build_model(args).eval()


@pytest.mark.parametrize("kind", KEPT)
def test_bytes_of_caches_are_those_of_the_table(kind):
    conf, numbers = KEPT[kind]
    cache = figures.model_figures(model(kind, conf), 16000)["kv_cache"]
    assert cache["encoder"]["attention"] == kind
    assert cache["encoder"]["bytes_per_frame"] == 4 * numbers * LAYERS
    assert cache["encoder"]["bytes_per_second"] == 25 * 4 * numbers * LAYERS  # a frame is 40 ms
    head = D // 4
    assert cache["encoder"]["fixed_bytes"] == (4 * LAYERS * 4 * (head + 1) * head if kind == "linear" else 0)
    assert cache["decoder_self"] == {"attention": "mha", "layers": 1, "bytes_per_token": 4 * 2 * D, "fixed_bytes": 0}
    assert cache["decoder_src"]["bytes_per_second"] == 25 * 4 * 2 * D


def test_a_latent_decoder_is_counted():
    choice = {"src_attention_layer_type": "mla", "src_attention_conf": {"kv_lora_rank": 5}}
    cache = figures.model_figures(model("mha", {}, **choice), 16000)["kv_cache"]
    assert (cache["decoder_src"]["attention"], cache["decoder_src"]["bytes_per_frame"]) == ("mla", 4 * 5)


def test_parameters_are_counted_by_part():
    built = model("mla", {"kv_lora_rank": 6})
    counted = figures.model_figures(built, 16000)["parameters"]
    assert counted["all"] == sum(parameter.numel() for parameter in built.parameters())
    assert counted["encoder"] == sum(parameter.numel() for parameter in built.encoder.parameters())
    attentions = [layer.self_attn for layer in built.encoder.encoders]
    attentions += [attention for layer in built.decoder.decoders for attention in (layer.self_attn, layer.src_attn)]
    assert counted["attention"] == sum(p.numel() for attention in attentions for p in attention.parameters())


def test_figures_say_what_they_were_measured_with(tmp_path):
    figures.write(tmp_path, figures.model_figures(model("mha", {}), 16000))
    conditions = json.loads((tmp_path / "figures.json").read_text())["measured_with"]
    assert conditions["threads"] == torch.get_num_threads()
    assert conditions["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert conditions["machine"]
