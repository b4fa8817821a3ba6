"""espnet-mla convert: a trained model in, the folder of an experiment out, or one message and nothing."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import experiment
import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask

import espnet_mla
from espnet_mla.attention import build_attention, build_attentions
from espnet_mla.convert import factors, heads, layers, statistics
from espnet_mla.convert import model as conversion
from espnet_mla.convert.command import main
from espnet_mla.convert.experiment import finetuning
from espnet_mla.convert.spec import METHODS, MODULES
from espnet_mla.trained.tasks import ASR

D, LAYERS, HEADS = 32, 2, 2
SIZES = {"output_size": D, "attention_heads": HEADS, "num_blocks": LAYERS}
ENCODERS = {  # tag -> encoder and its configuration
    "branchformer": ("branchformer", {"cgmlp_linear_units": 32}),
    "conformer": ("conformer", {"rel_pos_type": "latest", "linear_units": 16, "macaron_style": True}),
    "e_branchformer": ("e_branchformer", {"cgmlp_linear_units": 32, "linear_units": 16}),
    "transformer": ("transformer", {"linear_units": 16}),
    "conformer_abs": (
        "conformer",
        {"selfattention_layer_type": "selfattn", "pos_enc_layer_type": "abs_pos", "linear_units": 16},
    ),
    "branchformer_mha": ("branchformer", {"attention_layer_type": "mha", "cgmlp_linear_units": 32}),
    "conformer_streaming": (
        "conformer",
        {
            "selfattention_layer_type": "mha",
            "linear_units": 16,
            "cnn_module_kernel": 7,
            "streaming": {"chunk_size": 4, "left_chunks": 2},
        },
    ),
    "conformer_rope": (
        "conformer",
        {"selfattention_layer_type": "mha", "pos_enc_layer_type": "rope", "linear_units": 16},
    ),
    "conformer_sdpa": ("conformer", {"rel_pos_type": "latest", "linear_units": 16, "use_sdpa": True}),
}
SPEECH = "data/train/wav.scp"


@pytest.fixture(scope="module")
def here(recipe, tmp_path_factory):
    """A recipe's folder with trained models of every kind, and speech."""
    folder = tmp_path_factory.mktemp("convert") / "recipe"
    shutil.copytree(recipe, folder, symlinks=True)
    rng = np.random.default_rng(1)
    with contextlib.chdir(folder):
        for tag, (encoder, conf) in ENCODERS.items():
            add(tag, encoder=encoder, encoder_conf={**SIZES, **conf})
        entries = []
        for key, seconds in (("a", 1.5), ("b", 1.0), ("c", 2.1)):
            soundfile.write(f"data/{key}.flac", rng.uniform(-0.3, 0.3, int(seconds * 16000)), 16000)
            entries.append(f"{key} data/{key}.flac\n")
        Path(SPEECH).write_text("".join(entries))
    return folder


@pytest.fixture(autouse=True)
def in_the_recipe(here, monkeypatch):
    monkeypatch.chdir(here)


def add(tag, **changed):
    """A trained model, exp/asr_<tag>."""
    config = yaml.safe_load(Path("exp/asr_tiny/config.yaml").read_text()) | changed | {"output_dir": f"exp/asr_{tag}"}
    folder = Path(f"exp/asr_{tag}")
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    experiment.add_model(folder)


def convert(tag, *options, output_dir, model="valid.acc.ave.pth"):
    """The exit status of the command; of a tag's experiment, or of that in a folder."""
    folder = tag if isinstance(tag, Path) else f"exp/asr_{tag}"
    command = ["--asr_model_file", f"{folder}/{model}", *options, "--output_dir", str(output_dir)]
    try:
        return main(command)
    except SystemExit as ended:  # argparse's way
        return ended.code


def load(folder, model="valid.acc.ave.pth"):
    espnet_mla.register()
    return ASRTask.build_model_from_file(f"{folder}/config.yaml", f"{folder}/{model}")[0].eval()


def heard(folder):
    """What the decoder hears in speech.flac."""
    speech2text = Speech2Text(f"{folder}/config.yaml", f"{folder}/valid.acc.ave.pth", **experiment.DECODING)
    return experiment.heard(speech2text, experiment.samples(Path()))


def encoded(folder):
    samples = torch.from_numpy(experiment.samples(Path()))[None]
    with torch.inference_mode():
        return load(folder).encode(samples, torch.tensor([samples.shape[1]]))[0]


def relative_error(out, expected):
    return ((out - expected).norm() / expected.norm()).item()


def record(folder):
    return json.loads((Path(folder) / "conversion.json").read_text())


@pytest.mark.parametrize("tag", [tag for tag in ENCODERS if tag != "conformer_rope"])
def test_full_rank_gives_the_same_output_with_half_the_cache(tag, tmp_path):
    assert convert(tag, "--kv_lora_rank", str(D), "--calibration", SPEECH, output_dir=tmp_path / "out") == 0
    assert relative_error(encoded(tmp_path / "out"), encoded(f"exp/asr_{tag}")) < 1e-5
    for layer in record(tmp_path / "out")["layers"]:
        assert (layer["bytes_before"], layer["bytes_after"]) == (4 * 2 * D, 4 * D)
        assert layer["relative_error"] < 1e-5


def test_a_streaming_model_streams_on_after_it_is_converted(tmp_path):
    """With an eighth of the cache; and at full rank as it did before."""
    assert (
        convert("conformer_streaming", "--kv_lora_rank", "8", "--calibration", SPEECH, output_dir=tmp_path / "8") == 0
    )
    assert convert("conformer_streaming", "--kv_lora_rank", str(D), output_dir=tmp_path / "full") == 0
    results, kept = {}, {}
    for place in ("exp/asr_conformer_streaming", tmp_path / "8", tmp_path / "full"):
        recogniser = espnet_mla.StreamingSpeech2Text(place, final_search="ctc")
        recogniser.accept(experiment.samples(Path()))
        kept[place] = recogniser.stream.state.attention_nbytes
        results[place] = recogniser.finish()
    before, at_8, at_full = results.values()
    assert before.tokens and at_full.tokens == before.tokens
    assert at_full.score == pytest.approx(before.score, rel=1e-4) and at_8.score != pytest.approx(
        before.score, rel=1e-4
    )
    whole, eighth, half = kept.values()
    assert (8 * eighth, 2 * half) == (whole, whole)


def test_calibration_of_a_streaming_model_looks_where_its_frames_look(tmp_path, monkeypatch):
    masks = []
    add_up = statistics.StatisticsAccumulator.add

    def add(self, query, key, position, mask):
        masks.append((query.shape[1], mask))
        add_up(self, query, key, position, mask)

    monkeypatch.setattr(statistics.StatisticsAccumulator, "add", add)
    assert (
        convert("conformer_streaming", "--kv_lora_rank", "8", "--calibration", SPEECH, output_dir=tmp_path / "8") == 0
    )
    assert len(masks) == 3 * LAYERS
    for frames, mask in masks:
        seen = [[(i // 4 - 2) * 4 <= j < (i // 4 + 1) * 4 for j in range(frames)] for i in range(frames)]
        assert torch.equal(mask[0], torch.tensor(seen))


def test_a_decoder_of_full_rank_decodes_the_same(tmp_path):
    options = ("--modules", "encoder,decoder_self,decoder_src", "--kv_lora_rank", str(D), "--calibration", SPEECH)
    assert convert("conformer", *options, output_dir=tmp_path / "out") == 0
    for (text, score), (expected, its_score) in zip(heard(tmp_path / "out"), heard("exp/asr_conformer"), strict=True):
        assert text == expected
        assert score == pytest.approx(its_score, abs=1e-4)
    assert {layer["part"] for layer in record(tmp_path / "out")["layers"]} == {"encoder", "decoder_self", "decoder_src"}


@pytest.mark.parametrize("method", ["split", "joint", "covariance", "attention"])
def test_a_lower_rank_keeps_what_it_says_and_decodes(method, tmp_path, capsys):
    options = ("--kv_lora_rank", "5", "--method", method, "--calibration", SPEECH)
    assert convert("branchformer", *options, output_dir=tmp_path / "out") == 0
    model = load(tmp_path / "out")
    for layer, encoder_layer in zip(record(tmp_path / "out")["layers"], model.encoder.encoders, strict=True):
        assert encoder_layer.attn.project_kv(torch.zeros(1, 1, D)).nbytes_per_frame == layer["bytes_after"] == 4 * 5
        assert 0 < layer["energy_kept"] < 1
    figures = json.loads((tmp_path / "out/figures.json").read_text())
    assert figures["kv_cache"]["encoder"]["bytes_per_frame"] == 4 * 5 * LAYERS
    assert figures["parameters"]["all"] == sum(parameter.numel() for parameter in model.parameters())
    assert heard(tmp_path / "out")
    out = capsys.readouterr().out
    assert f"| encoder.encoders.0.attn | 5 | {4 * 2 * D} | {4 * 5} |" in out
    assert f"| all | | {4 * 2 * D * LAYERS} | {4 * 5 * LAYERS} ({5 / 2 / D:.2%}) |" in out


def test_the_reported_error_is_that_of_the_attentions_output(tmp_path):
    options = ("--kv_lora_rank", "5", "--calibration", SPEECH)
    assert convert("branchformer", *options, output_dir=tmp_path / "out") == 0
    old, new = load("exp/asr_branchformer"), load(tmp_path / "out")
    wrong = whole = 0.0

    def compare(_module, inputs, output):
        nonlocal wrong, whole
        wrong += (new.encoder.encoders[0].attn(*inputs) - output).double().square().sum()
        whole += output.double().square().sum()

    old.encoder.encoders[0].attn.register_forward_hook(compare)
    with torch.inference_mode():
        for key in "abc":
            samples = torch.from_numpy(soundfile.read(f"data/{key}.flac", dtype="float32")[0])
            old.encode(samples[None], torch.tensor([len(samples)]))
    assert record(tmp_path / "out")["layers"][0]["relative_error"] == pytest.approx(
        float(wrong / whole) ** 0.5, rel=1e-4
    )


@pytest.mark.parametrize("method", ["mean", "aligned"])
def test_gqa_shares_keys_and_values(method, tmp_path):
    options = ("--attention", "gqa", "--num_kv_heads", "1", "--method", method, "--calibration", SPEECH)
    assert convert("conformer", *options, output_dir=tmp_path / "out") == 0
    assert [layer["bytes_after"] for layer in record(tmp_path / "out")["layers"]] == [4 * 2 * D // HEADS] * LAYERS
    assert heard(tmp_path / "out")


def test_as_many_kv_heads_as_heads_gives_the_same_output(tmp_path):
    options = ("--attention", "gqa", "--num_kv_heads", str(HEADS), "--calibration", SPEECH)
    assert convert("conformer", *options, output_dir=tmp_path / "out") == 0
    torch.testing.assert_close(encoded(tmp_path / "out"), encoded("exp/asr_conformer"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tag", ["conformer", "branchformer_mha", "conformer_abs", "transformer"])
def test_linear_attention_starts_from_the_weights_there_are_with_rotary_positions_for_relative_ones(tag, tmp_path):
    assert convert(tag, "--attention", "linear", "--calibration", SPEECH, output_dir=tmp_path / "linear") == 0
    config = yaml.safe_load((tmp_path / "linear/config.yaml").read_text())["encoder_conf"]
    relative = tag in ("conformer", "branchformer_mha")
    assert config["pos_enc_layer_type"] == ("rope" if relative else "abs_pos")
    was, made = load(f"exp/asr_{tag}").encoder.encoders, load(tmp_path / "linear", "model.pth").encoder.encoders
    for layers_ in zip(was, made, strict=True):
        old, new = (getattr(layer, "self_attn", None) or layer.attn for layer in layers_)
        x = torch.randn(1, 9, D)
        # Its queries are those that the old one scores the content of a frame with.
        q = old.linear_q(x).view(1, 9, HEADS, -1) + getattr(old, "pos_bias_u", 0)
        torch.testing.assert_close(new.linear_q(x).view(q.shape), q)
        for name in ("linear_k", "linear_v", "linear_out"):
            torch.testing.assert_close(getattr(new, name)(x), getattr(old, name)(x))
    for layer in record(tmp_path / "linear")["layers"]:
        d_head = D // HEADS
        assert layer["relative_error"] > 0 and layer["bytes_after"] == 0
        assert layer["state_bytes"] == 4 * HEADS * d_head * (d_head + 1)


def test_rotary_keys_become_one_that_the_heads_share(tmp_path):
    errors, source = [], encoded("exp/asr_conformer_rope")
    for size in (4, 32):
        folder = tmp_path / str(size)
        options = ("--kv_lora_rank", "32", "--qk_rope_head_dim", str(size), "--calibration", SPEECH)
        assert convert("conformer_rope", *options, output_dir=folder) == 0
        errors.append(relative_error(encoded(folder), source))
        assert {layer["bytes_after"] for layer in record(folder)["layers"]} == {4 * (32 + size)}
    assert errors[1] < 0.5 * errors[0] < 0.05  # what is left is the keys' bias, which a latent has none of
    frequencies = yaml.safe_load((tmp_path / "4/config.yaml").read_text())["encoder_conf"]["attention_conf"]
    assert [len(of) for of in frequencies["rope_frequencies"]] == [2] * LAYERS


@pytest.mark.parametrize(
    ("message", "tag", "options"),
    [
        ("--calibration is needed", "conformer_rope", ("--kv_lora_rank", "4")),
        ("--kv_budget 0.1: a model with rope needs --kv_lora_rank", "conformer_rope", ("--kv_budget", "0.1", "--calibration", SPEECH)),
        ("--qk_rope_head_dim 3: an even number from 2 to 32", "conformer_rope", ("--kv_lora_rank", "4", "--qk_rope_head_dim", "3", "--calibration", SPEECH)),
        ("--qk_rope_head_dim 4: this model has no rotary positions", "conformer", ("--kv_lora_rank", "4", "--qk_rope_head_dim", "4")),
        ("--qk_rope_head_dim: --attention gqa has no such option", "conformer_rope", ("--attention", "gqa", "--qk_rope_head_dim", "4")),
    ],
)  # fmt: skip
def test_a_wrong_option_for_rotary_positions_is_refused(capsys, tmp_path, message, tag, options):
    assert convert(tag, *options, output_dir=tmp_path / "out") == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_rotary_model_becomes_no_gqa(capsys, tmp_path):
    assert convert("conformer_rope", "--attention", "gqa", output_dir=tmp_path / "out") == 1
    assert "rope can't be converted to gqa" in capsys.readouterr().err


@pytest.mark.parametrize("position", ["rel_pos", "rope", "abs_pos"])
@pytest.mark.parametrize("down_rate", [2, 3])
def test_merging_begins_with_the_mean_of_a_groups_latents(position, down_rate):
    sizes = {"d_model": D, "num_heads": HEADS, "position": position, "dropout_rate": 0.0}
    mla = build_attention("mla", {"kv_lora_rank": 6, "kv_norm": True}, **sizes)
    options = layers.options_of(mla) | {"down_rate": down_rate}
    mtla = build_attention("mtla", options, **sizes)
    mtla.load_state_dict(layers.as_mtla(mla, down_rate))
    x = torch.randn(1, 7, D)
    latents = mla.project_kv(x).tensors[0]
    merged = mtla.project_kv(x).tensors[0]
    for number, group in enumerate(latents.split(down_rate, dim=1)):
        torch.testing.assert_close(merged[:, number], group.sum(1) / down_rate)
    merged.square().sum().backward()
    assert mtla.linear_merge.weight.grad.abs().sum() > 0, "it can learn"


def test_layers_that_differ_keep_what_each_has():
    sizes = {"d_model": D, "num_heads": HEADS, "position": "abs_pos", "dropout_rate": 0.0}
    confs = [{"kv_lora_rank": 6}, {"kv_lora_rank": 8, "kv_norm": True, "q_lora_rank": 5}]
    of = [layers.options_of(build_attention("mla", conf, **sizes)) for conf in confs]
    for order in (of, of[::-1]):
        made = conversion._options(order)
        for new, old in zip(build_attentions("mla", made, 2, **sizes), order, strict=True):
            assert layers.options_of(new) == old


@pytest.mark.parametrize("position", ["rope", "scaled_abs_pos"])
def test_a_latent_transformer_keeps_its_positions(position, tmp_path):
    """Which ESPnet's own does not have."""
    conf = {"selfattention_layer_type": "mla", "pos_enc_layer_type": position, "attention_conf": {"kv_lora_rank": 6}}
    add(f"latent_{position}", encoder="transformer", encoder_conf={**SIZES, "linear_units": 16, **conf})
    assert convert(f"latent_{position}", "--attention", "mtla", output_dir=tmp_path / "mtla") == 0
    config = yaml.safe_load((tmp_path / "mtla/config.yaml").read_text())["encoder_conf"]
    assert config["pos_enc_layer_type"] == position
    heard(tmp_path / "mtla")


def test_an_mla_model_becomes_an_mtla_one_with_half_its_cache(tmp_path):
    """A streaming one, whose layers' ranks differ, and its decoder too."""
    for source, name, *options in (
        ("conformer_streaming", "encoder", "--kv_lora_rank", "6,8"),
        (tmp_path / "encoder", "mla", "--kv_lora_rank", "8", "--modules", "decoder_self"),
        (tmp_path / "mla", "mtla", "--attention", "mtla", "--modules", "encoder,decoder_self"),
    ):
        assert convert(source, *options, "--calibration", SPEECH, output_dir=tmp_path / name) == 0
    found = record(tmp_path / "mtla")["layers"]
    assert [layer["size"] for layer in found] == [2] * len(found)
    assert [layer["bytes_before"] for layer in found][:3] == [24, 32, 32]
    assert all(layer["bytes_after"] == layer["bytes_before"] / 2 for layer in found)
    assert all(0 < layer["relative_error"] < 1 for layer in found)
    config = yaml.safe_load((tmp_path / "mtla/config.yaml").read_text())
    encoder, decoder = config["encoder_conf"], config["decoder_conf"]
    assert encoder["selfattention_layer_type"] == decoder["self_attention_layer_type"] == "mtla"
    assert encoder["attention_conf"]["kv_lora_rank"] == [6, 8] and encoder["streaming"]["chunk_size"] == 4
    assert encoder["attention_conf"]["down_rate"] == decoder["self_attention_conf"]["down_rate"] == 2
    heard(tmp_path / "mtla")


@pytest.mark.parametrize(
    ("status", "message", "options"),
    [
        (1, "encoder_conf: selfattention_layer_type: mha can't be converted to mtla; what can is mla: convert it", ()),
        (2, "--down_rate 1: a whole number of at least 2", ("--down_rate", "1")),
        (2, "--down_rate: 3 numbers are given, but the encoder has 2 layers", ("--down_rate", "2,2,2")),
        (2, "--kv_lora_rank: --attention mtla has no such option", ("--kv_lora_rank", "4")),
        (
            1,
            "src_attention_layer_type: a decoder's attention to the speech can't be mtla",
            ("--modules", "decoder_src"),
        ),
    ],
)
def test_what_does_not_become_an_mtla_model_is_named(capsys, tmp_path, status, message, options):
    source = "conformer_streaming"
    if "2,2,2" in options:
        source = tmp_path / "mla"
        assert convert("conformer_streaming", "--kv_lora_rank", "4", output_dir=source) == 0
    assert convert(source, "--attention", "mtla", *options, output_dir=tmp_path / "out") == status
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_that_looks_ahead_looks_ahead_on_as_mla_and_becomes_nothing_that_cannot(tmp_path, capsys):
    config = Path("exp/asr_conformer_streaming/config.yaml")
    conf = yaml.safe_load(config.read_text())
    conf["encoder_conf"]["streaming"]["look_ahead"] = 3
    source, full = tmp_path / "ahead", tmp_path / "full"
    source.mkdir()
    (source / "config.yaml").write_text(yaml.safe_dump(conf))
    shutil.copyfile(config.with_name("valid.acc.ave.pth"), source / "valid.acc.ave.pth")
    assert convert(source, "--kv_lora_rank", str(D), "--calibration", SPEECH, output_dir=full) == 0
    texts = []
    for place in (source, full):
        recogniser = espnet_mla.StreamingSpeech2Text(place, final_search="ctc")
        recogniser.accept(experiment.samples(Path()))
        assert recogniser.pool.model.chunks.look_ahead == 3
        texts.append(recogniser.finish().tokens)
    assert texts[0] and texts[0] == texts[1]
    capsys.readouterr()
    assert convert(source, "--attention", "linear", output_dir=tmp_path / "linear") == 1
    assert "look_ahead: 3: linear can't look ahead; mha, gqa, mla can" in capsys.readouterr().err
    assert convert(full, "--attention", "mtla", output_dir=tmp_path / "mtla", model="model.pth") == 1
    assert "look_ahead: 3: mtla can't look ahead; mha, gqa, mla can" in capsys.readouterr().err
    assert not (tmp_path / "linear").exists() and not (tmp_path / "mtla").exists()


def test_a_streaming_model_that_forgets_becomes_no_linear_one(tmp_path, capsys):
    assert convert("conformer_streaming", "--attention", "linear", output_dir=tmp_path / "linear") == 1
    assert "left_chunks" in capsys.readouterr().err


def test_ranks_may_differ_by_layer(tmp_path):
    assert convert("conformer", "--kv_lora_rank", "5,9", output_dir=tmp_path / "out") == 0
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert config["encoder_conf"]["attention_conf"] == {"kv_lora_rank": [5, 9]}
    model = load(tmp_path / "out")
    assert [layer.self_attn.kv_lora_rank for layer in model.encoder.encoders] == [5, 9]
    assert json.loads((tmp_path / "out/figures.json").read_text())["kv_cache"]["encoder"]["bytes_per_frame"] == 4 * 14


def test_a_budget_is_kept_over_the_whole_model(tmp_path):
    assert convert("conformer", "--kv_budget", "0.125", "--calibration", SPEECH, output_dir=tmp_path / "out") == 0
    layers = record(tmp_path / "out")["layers"]
    before, after = (sum(layer[f"bytes_{when}"] for layer in layers) for when in ("before", "after"))
    assert after / before == 0.125


def test_without_calibration_the_weights_alone_are_looked_at_and_it_is_said(tmp_path, capsys):
    assert convert("conformer", "--kv_lora_rank", "5", output_dir=tmp_path / "out") == 0
    made = record(tmp_path / "out")
    assert (made["method"], made["calibration"]) == ("joint", None)
    out = capsys.readouterr().out
    assert "Without --calibration: method joint, which looks at the weights alone" in out
    assert "not measured" in out


def test_utterances_are_taken_at_even_distances(tmp_path):
    options = ("--kv_lora_rank", "5", "--calibration", SPEECH, "--calibration_utterances", "2")
    assert convert("conformer", *options, output_dir=tmp_path / "out") == 0
    assert record(tmp_path / "out")["calibration"] == {
        "wav_scp": SPEECH, "utterances": 2, "too_short": 0, "seconds": 2.5,
    }  # fmt: skip


def test_an_utterance_too_short_for_the_model_is_left_out(tmp_path, capsys):
    soundfile.write("data/d.flac", np.zeros(700), 16000)
    Path("data/short.scp").write_text(Path(SPEECH).read_text() + "d data/d.flac\n")
    options = ("--kv_lora_rank", "5", "--calibration", "data/short.scp")
    assert convert("conformer", *options, output_dir=tmp_path / "out") == 0
    assert record(tmp_path / "out")["calibration"]["too_short"] == 1
    assert "3 utterances of data/short.scp, 0.1 minutes; 1 too short" in capsys.readouterr().out


def test_the_folder_is_an_experiment_of_the_recipe():
    assert convert("conformer", "--kv_lora_rank", "5", "--calibration", SPEECH, output_dir="exp/asr_c5") == 0
    config = yaml.safe_load(Path("exp/asr_c5/config.yaml").read_text())
    source = yaml.safe_load(Path("exp/asr_conformer/config.yaml").read_text())
    assert config["output_dir"] == "exp/asr_c5"
    assert config["normalize_conf"] == source["normalize_conf"]
    assert config["bpemodel"] == source["bpemodel"]
    names = {"config.yaml", "conversion.json", "figures.json", "finetune.yaml", "model.pth", "valid.acc.ave.pth"}
    assert {path.name for path in Path("exp/asr_c5").iterdir()} == names
    speech2text = espnet_mla.from_pretrained("exp/asr_c5", **experiment.DECODING)
    assert experiment.heard(speech2text, experiment.samples(Path())) == heard("exp/asr_c5")


def test_it_may_be_made_from_elsewhere_and_lie_elsewhere(tmp_path, here):
    os.chdir(tmp_path)
    command = ["--asr_model_file", str(here / "exp/asr_conformer/valid.acc.ave.pth"), "--kv_lora_rank", str(D)]
    assert main([*command, "--output_dir", "out"]) == 0
    assert main([*command, "--output_dir", str(here / "exp/asr_inside")]) == 0
    elsewhere = espnet_mla.from_pretrained("out", **experiment.DECODING)
    inside = espnet_mla.from_pretrained(here / "exp/asr_inside", **experiment.DECODING)
    assert yaml.safe_load((here / "exp/asr_inside/config.yaml").read_text())["output_dir"] == "exp/asr_inside"
    os.chdir(here)
    expected = heard("exp/asr_conformer")
    for speech2text in (elsewhere, inside):
        for (text, score), (its_text, its_score) in zip(
            experiment.heard(speech2text, experiment.samples(here)), expected, strict=True
        ):
            assert (text, score) == (its_text, pytest.approx(its_score, abs=1e-4))


def test_a_packed_model_is_converted_with_copies_of_what_it_needs(tmp_path, monkeypatch, here):
    """An archive of the model zoo, whose unpacked files may go away."""
    from espnet2.bin import pack

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = ["exp/asr_stats_raw_en_bpe30/train/feats_stats.npz", "data/en_token_list/bpe_unigram30/bpe.model"]
    command = ["asr", "--asr_train_config", "exp/asr_conformer/config.yaml", "--outpath", str(tmp_path / "a.zip")]
    command += ["--asr_model_file", "exp/asr_conformer/valid.acc.ave.pth"]
    pack.main([*command, *(part for file in files for part in ("--option", file))])
    expected = heard("exp/asr_conformer")
    os.chdir(tmp_path)
    assert main(["--model_tag", "a.zip", "--kv_lora_rank", str(D), "--output_dir", "exp/out"]) == 0
    shutil.rmtree("cache")
    assert {"bpe.model", "feats_stats.npz"} <= {path.name for path in Path("exp/out").rglob("*")}
    speech2text = espnet_mla.from_pretrained("exp/out", **experiment.DECODING)
    for (text, score), (its_text, its_score) in zip(
        experiment.heard(speech2text, experiment.samples(here)), expected, strict=True
    ):
        assert (text, score) == (its_text, pytest.approx(its_score, abs=1e-4))


def test_an_existing_folder_is_replaced_only_when_told_and_only_one_that_was_made_here(tmp_path, capsys):
    out = tmp_path / "out"
    assert convert("conformer", "--kv_lora_rank", "5", output_dir=out) == 0
    assert convert("conformer", "--kv_lora_rank", "6", output_dir=out) == 1
    assert f"--output_dir {out} exists: give --overwrite to replace it" in capsys.readouterr().err
    assert record(out)["layers"][0]["size"] == 5
    assert convert("conformer", "--kv_lora_rank", "6", "--overwrite", output_dir=out) == 0
    assert record(out)["layers"][0]["size"] == 6
    before = sorted(Path("exp/asr_branchformer").iterdir())
    assert convert("conformer", "--kv_lora_rank", "6", "--overwrite", output_dir="exp/asr_branchformer") == 1
    assert "was not made by espnet-mla convert" in capsys.readouterr().err
    assert sorted(Path("exp/asr_branchformer").iterdir()) == before


def test_an_old_folder_survives_what_goes_wrong_while_it_is_replaced(tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert convert("conformer", "--kv_lora_rank", "5", output_dir=out) == 0
    rename = Path.rename

    def interrupted(path, target):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    assert convert("conformer", "--kv_lora_rank", "6", "--overwrite", output_dir=out) == 130
    assert record(out)["layers"][0]["size"] == 5
    assert list(tmp_path.iterdir()) == [out]


def test_a_link_to_another_disk_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/model")
    for rank in ("5", "6"):
        assert convert("conformer", "--kv_lora_rank", rank, "--overwrite", output_dir=tmp_path / "out") == 0
        assert (tmp_path / "out").is_symlink()
        assert record(tmp_path / "disk/model")["layers"][0]["size"] == int(rank)


def test_a_place_where_nothing_can_be_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert convert("conformer", "--kv_lora_rank", "5", output_dir=tmp_path / "file/out") == 1
    assert f"{tmp_path / 'file'} is no folder that can be written to" in capsys.readouterr().err
    model = Path("exp/asr_conformer/valid.acc.ave.pth").absolute()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["--asr_model_file", str(model), "--kv_lora_rank", "5", "--output_dir", "."]) == 1
    out, err = capsys.readouterr()
    assert "--output_dir . is the current folder" in err
    assert "energy kept" not in out


def refuse_model(capsys, tmp_path, message, *options, **changed):
    """A model that can't be converted: one message, nothing left."""
    tag = f"refused{len(list(Path('exp').iterdir()))}"
    add(tag, **changed)
    assert convert(tag, *(options or ("--kv_lora_rank", "4")), output_dir=tmp_path / "out") == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(err) == 1
    assert message in err[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("message", "encoder", "conf"),
    [
        ("encoder: vgg_rnn can't be converted; what can is conformer, branchformer", "vgg_rnn", {}),
        ("legacy_rel_selfattn (rel_pos_type: legacy, which is ESPnet's default where the key is absent) can't be converted", "conformer", {**SIZES}),
        ("attention_layer_type: FastSelfAttention can't be converted", "branchformer", {**SIZES, "attention_layer_type": "fast_selfattn", "pos_enc_layer_type": "abs_pos"}),
        ("attention_layer_type: gqa can't be converted", "branchformer", {**SIZES, "attention_layer_type": "gqa"}),
        ("qk_norm: true can't be converted", "conformer", {
            **SIZES, "qk_norm": True, "selfattention_layer_type": "selfattn", "pos_enc_layer_type": "abs_pos",
        }),
        ("use_attn: false", "branchformer", {**SIZES, "use_attn": False}),
        ("pos_enc_layer_type: conv can't be converted", "transformer", {**SIZES, "pos_enc_layer_type": "conv"}),
    ],
)  # fmt: skip
def test_an_encoder_that_cannot_be_converted_is_named(capsys, tmp_path, message, encoder, conf):
    refuse_model(capsys, tmp_path, message, encoder=encoder, encoder_conf=conf)


def test_a_decoder_that_cannot_be_converted_is_named(capsys, tmp_path):
    refuse_model(
        capsys, tmp_path, "decoder: rnn can't be converted; what can is transformer",
        "--modules", "decoder_src", "--kv_lora_rank", "4", decoder="rnn", decoder_conf={},
    )  # fmt: skip


def test_a_model_without_a_decoder_is_converted_but_for_the_decoder(capsys, tmp_path):
    config = yaml.safe_load(Path("exp/asr_tiny/config.yaml").read_text())
    ctc = {
        "model_conf": {**config["model_conf"], "ctc_weight": 1.0},
        "encoder_conf": {**SIZES, "cgmlp_linear_units": 32},
    }
    refuse_model(
        capsys, tmp_path, "model_conf: ctc_weight: 1.0: this model has no decoder to convert",
        "--modules", "decoder_src", "--kv_lora_rank", "4", **ctc,
    )  # fmt: skip
    add("ctc", **ctc)
    assert convert("ctc", "--kv_lora_rank", str(D), "--calibration", SPEECH, output_dir=tmp_path / "out") == 0
    torch.testing.assert_close(encoded(tmp_path / "out"), encoded("exp/asr_ctc"), rtol=1e-4, atol=1e-5)


def test_a_model_of_features_is_refused(capsys, tmp_path):
    conf = {**SIZES, "cgmlp_linear_units": 32}
    refuse_model(
        capsys, tmp_path, "frontend: null: this model takes features", frontend=None, input_size=80, encoder_conf=conf
    )


@pytest.mark.parametrize("position", ["scaled_abs_pos", "rel_pos"])
def test_positions_that_espnets_transformer_does_not_know_are_what_it_takes_for_them(position, tmp_path):
    add(f"transformer_{position}", encoder="transformer", encoder_conf={**SIZES, "pos_enc_layer_type": position})
    tag = f"transformer_{position}"
    assert convert(tag, "--kv_lora_rank", str(D), "--calibration", SPEECH, output_dir=tmp_path / "out") == 0
    torch.testing.assert_close(encoded(tmp_path / "out"), encoded(f"exp/asr_{tag}"), rtol=1e-4, atol=1e-5)


def test_a_model_of_which_espnet_has_forgotten_how_it_was_initialised_is_converted(tmp_path):
    add("chainer", encoder="transformer", encoder_conf=SIZES)
    path = Path("exp/asr_chainer/config.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"init": "chainer"}))
    assert convert("chainer", "--kv_lora_rank", "4", output_dir=tmp_path / "out") == 0
    assert "init" not in yaml.safe_load((tmp_path / "out/finetune.yaml").read_text())


def test_decoder_calibration_without_text_or_tokens_is_no_trouble_or_named(capsys, tmp_path):
    Path("data/empty").mkdir()
    shutil.copyfile(SPEECH, "data/empty/wav.scp")
    Path("data/empty/text").write_text("a\nb A BIG DOG\nc WORDS NOBODY KNOWS\n")
    options = ("--kv_lora_rank", "4", "--modules", "decoder_self,decoder_src", "--calibration", "data/empty/wav.scp")
    assert convert("conformer", *options, output_dir=tmp_path / "out") == 0
    shutil.rmtree(tmp_path / "out")
    conf = {**SIZES, "cgmlp_linear_units": 32}
    refuse_model(capsys, tmp_path, "use_preprocessor: false", *options, use_preprocessor=False, encoder_conf=conf)


def wav_scp(text):
    path = Path("data/other.scp")
    path.write_text(text)
    return path


def broken_audio():
    Path("data/broken.flac").write_bytes(b"fLaC but not really")
    return wav_scp("a data/broken.flac\n")


def slow_audio():
    soundfile.write("data/slow.flac", np.zeros(8000), 8000)
    return wav_scp("a data/slow.flac\n")


def short_audio():
    soundfile.write("data/d.flac", np.zeros(700), 16000)
    soundfile.write("data/e.flac", np.zeros(1), 16000)
    return wav_scp("d data/d.flac\ne data/e.flac\n")


def recordings():
    Path("data/long").mkdir(exist_ok=True)
    shutil.copyfile(SPEECH, "data/long/wav.scp")
    Path("data/long/segments").write_text("a1 a 0 1\n")
    return "data/long/wav.scp"


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("data/nowhere.scp does not exist", lambda: "data/nowhere.scp"),
        ("data/other.scp: a: data/missing.flac does not exist", lambda: wav_scp("a data/missing.flac\n")),
        ("data/other.scp: a: data/broken.flac", broken_audio),
        ("data/other.scp: a: data/slow.flac has 8000 Hz, but the model takes 16000 Hz", slow_audio),
        ("data cannot be read: Is a directory", lambda: "data"),
        ("data/long/wav.scp is of whole recordings, by segments beside it", recordings),
        ("data/other.scp holds no utterance", lambda: wav_scp("\n")),
        ("data/other.scp: all 2 utterances are too short for the model", short_audio),
    ],
)
def test_calibration_speech_that_is_no_good_is_named(capsys, tmp_path, message, make):
    options = ("--kv_lora_rank", "4", "--calibration", str(make()))
    assert convert("conformer", *options, output_dir=tmp_path / "out") == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_needs_the_text_of_the_calibration_speech(capsys, tmp_path):
    Path("data/alone").mkdir(exist_ok=True)
    shutil.copyfile(SPEECH, "data/alone/wav.scp")
    options = ("--kv_lora_rank", "4", "--modules", "decoder_src", "--calibration", "data/alone/wav.scp")
    assert convert("conformer", *options, output_dir=tmp_path / "out") == 1
    assert "data/alone/text does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("--kv_lora_rank 33 is more than output_size (32)", ("--kv_lora_rank", "33")),
        ("--kv_lora_rank 0: a whole number of at least 1", ("--kv_lora_rank", "0")),
        ("--kv_lora_rank many: a whole number", ("--kv_lora_rank", "many")),
        ("--kv_lora_rank [4: a whole number", ("--kv_lora_rank", "[4")),
        ("--num_kv_heads : a whole number", ("--attention", "gqa", "--num_kv_heads", "")),
        ("--kv_lora_rank: 3 numbers are given, but the encoder has 2 layers", ("--kv_lora_rank", "4,5,6")),
        ("--attention mla needs either --kv_lora_rank or --kv_budget", ()),
        ("--attention mla needs either", ("--kv_lora_rank", "4", "--kv_budget", "0.1")),
        ("--kv_budget 0.6: more than 0 and at most 0.5", ("--kv_budget", "0.6")),
        ("--kv_budget 0.001 keeps 0 numbers for the 2 layers of the encoder", ("--kv_budget", "0.001")),
        ("--num_kv_heads 3 must divide attention_heads (2)", ("--attention", "gqa", "--num_kv_heads", "3")),
        ("--kv_lora_rank: --attention gqa has no such option", ("--attention", "gqa", "--kv_lora_rank", "4")),
        ("--num_kv_heads: --attention mla has no such option", ("--num_kv_heads", "1", "--kv_lora_rank", "4")),
        ("--method attention needs --calibration", ("--kv_lora_rank", "4", "--method", "attention")),
        ("--method mean: --attention mla has split, joint", ("--kv_lora_rank", "4", "--method", "mean")),
        ("--modules head: 'head' is unknown; valid are encoder", ("--kv_lora_rank", "4", "--modules", "head")),
        ("--calibration_utterances 0: at least 1", ("--kv_lora_rank", "4", "--calibration_utterances", "0")),
        ("--asr_model_file (with --asr_train_config) or --model_tag", ("--kv_lora_rank", "4", "--model_tag", "a.zip")),
    ],
)
def test_a_wrong_option_is_refused_with_its_value(capsys, tmp_path, message, options):
    assert convert("conformer", *options, output_dir=tmp_path / "out") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def other_checkpoint(name, change):
    state = torch.load("exp/asr_conformer/valid.acc.ave.pth")
    change(state)
    torch.save(state, f"exp/asr_conformer/{name}.pth")
    return f"{name}.pth"


def garbage():
    Path("exp/asr_conformer/garbage.pth").write_bytes(b"PK no archive")
    return "garbage.pth"


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("does not exist", lambda: "nothing.pth"),
        ("is no whole file of parameters", garbage),
        ("it lacks ctc.ctc_lo.bias", lambda: other_checkpoint("less", lambda state: state.pop("ctc.ctc_lo.bias"))),
        (
            "it has more, which the model does not",
            lambda: other_checkpoint("more", lambda s: s.update(more=torch.ones(1))),
        ),
        (
            "size mismatch for ctc.ctc_lo.bias",
            lambda: other_checkpoint("other", lambda s: s.update({"ctc.ctc_lo.bias": torch.ones(3)})),
        ),
        (
            "ctc.ctc_lo.bias has values that are not finite numbers",
            lambda: other_checkpoint("nan", lambda s: s["ctc.ctc_lo.bias"].fill_(float("nan"))),
        ),
        (
            "a file with parameters alone is needed",
            lambda: other_checkpoint("nested", lambda s: s.update(optimizers=[])),
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(capsys, tmp_path, message, make):
    name = make()
    assert convert("conformer", "--kv_lora_rank", "4", output_dir=tmp_path / "out", model=name) == 1
    err = capsys.readouterr().err
    assert message in err
    assert f"exp/asr_conformer/{name}" in err
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_is_none_is_named(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("encoder: [")
    shutil.copyfile("exp/asr_conformer/valid.acc.ave.pth", tmp_path / "model.pth")
    assert main(["--asr_model_file", str(tmp_path / "model.pth"), "--kv_lora_rank", "4", "--output_dir", "exp/no"]) == 1
    assert f"{tmp_path}/config.yaml cannot be read: " in capsys.readouterr().err
    assert not Path("exp/no").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"encoder_conf": None},
        {"encoder_conf": {**SIZES, "linear_units": "many"}},
        {"token_list": 5},
        {"encoder": 5},
        {"frontend_conf": {"fs": "abc"}},
    ],
)
def test_a_configuration_that_espnet_cannot_build_from_is_named(capsys, tmp_path, changed):
    config = yaml.safe_load(Path("exp/asr_conformer/config.yaml").read_text()) | changed
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(config))
    options = ("--asr_train_config", str(tmp_path / "broken.yaml"), "--kv_lora_rank", "4")
    assert convert("conformer", *options, output_dir=tmp_path / "out") == 1
    assert f"error: {tmp_path / 'broken.yaml'}: ESPnet cannot build the model: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_is_told_and_leaves_nothing(tmp_path, capsys, largest_file):
    with largest_file(20_000):
        status = convert("conformer", "--kv_lora_rank", "4", output_dir=tmp_path / "out")
    assert status == 1
    assert f"cannot write {tmp_path / 'out'}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_fine_tuning_takes_a_tenth_of_the_epochs_at_a_tenth_of_the_rate():
    config = yaml.safe_load(Path("exp/asr_conformer/config.yaml").read_text())
    config |= {"max_epoch": 70, "keep_nbest_models": [10], "optim_conf": {"lr": 0.002, "weight_decay": 1e-6}}
    config |= {"batch_bins": 12345, "train_shape_file": ["a"], "train_data_path_and_name_and_type": [["a", "b", "c"]]}
    tuning = finetuning(config, ASR)
    assert tuning["max_epoch"] == 7
    assert tuning["keep_nbest_models"] == 7
    assert tuning["optim_conf"].items() >= {"lr": 0.0002, "weight_decay": 1e-6}.items()
    assert tuning["batch_bins"] == 12345
    assert tuning["encoder_conf"] == config["encoder_conf"]
    assert not {"train_shape_file", "train_data_path_and_name_and_type", "output_dir", "token_list"} & set(tuning)


@pytest.mark.parametrize(
    ("scheduler", "conf", "lr", "peak"),
    [
        ("warmuplr", {"warmup_steps": 100}, 0.002, 0.002),
        (None, {}, 0.002, 0.002),
        ("noamlr", {"model_size": 256, "warmup_steps": 25000}, 10.0, 10 / 16 / 25000**0.5),
        ("onecyclelr", {"max_lr": 0.003, "total_steps": 10}, 1e-6, 0.003),
        ("piecewiselinearwarmuplr", {"warmup_steps_list": [0, 9], "warmup_lr_list": [0.0, 0.004]}, 1.0, 0.004),
    ],
)
def test_the_rate_is_a_tenth_of_the_highest_of_the_schedulers(scheduler, conf, lr, peak):
    config = yaml.safe_load(Path("exp/asr_conformer/config.yaml").read_text())
    config |= {"optim": "adam", "optim_conf": {"lr": lr}, "scheduler": scheduler, "scheduler_conf": conf}
    tuning = finetuning(config | {"an_old_key": 3}, ASR)
    assert tuning["optim_conf"]["lr"] == pytest.approx(peak / 10, rel=1e-4)
    assert tuning["scheduler"] is None
    assert "an_old_key" not in tuning


@pytest.mark.slow  # test_recipe.py trains with it too, with one rank for all layers
def test_asr_train_takes_the_configuration_for_fine_tuning(tmp_path):
    assert convert("conformer", "--kv_lora_rank", "5,9", output_dir="exp/asr_tune") == 0
    source = yaml.safe_load(Path("exp/asr_conformer/config.yaml").read_text())
    command = [
        sys.executable, "-m", "espnet_mla.run", "-m", "espnet2.bin.asr_train", "--dry_run", "true", "--config",
        "exp/asr_tune/finetune.yaml", "--output_dir", str(tmp_path / "tuned"), "--token_type", "bpe", "--token_list",
        *("data/en_token_list/bpe_unigram30/tokens.txt", "--bpemodel", source["bpemodel"], "--normalize", "global_mvn"),
        "--normalize_conf", f"stats_file={source['normalize_conf']['stats_file']}",
        "--init_param", "exp/asr_tune/model.pth",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = yaml.safe_load((tmp_path / "tuned/config.yaml").read_text())
    assert written["encoder_conf"]["attention_conf"] == {"kv_lora_rank": [5, 9]}
    assert written["scheduler"] is None


def test_what_is_offered_is_what_there_is():
    offered = {"mla": factors.METHODS, "gqa": heads.METHODS, "mtla": ["averaged"], "linear": ["copied"]}
    assert tuple(layers._PARTS) == MODULES
    assert {kind: list(methods) for kind, methods in METHODS.items()} == {kind: list(m) for kind, m in offered.items()}
