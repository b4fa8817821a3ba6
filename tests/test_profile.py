"""espnet-mla profile: every figure of a model, measured, in figures.json beside it and printed."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import experiment
import numpy as np
import profiled
import pytest
import soundfile
import torch
import yaml

from espnet_mla.measure import measuring, memory, profile
from espnet_mla.trained.model import find


@pytest.fixture
def folder(recipe, tmp_path, monkeypatch):
    """A copy of the recipe's folder, as the current one."""
    shutil.copytree(recipe, tmp_path / "recipe", symlinks=True)
    monkeypatch.chdir(tmp_path / "recipe")
    return tmp_path / "recipe"


@pytest.fixture
def no_peak_memory(monkeypatch):
    """Leaves out the peak memory: a process for each length, which test_memory.py measures too."""
    monkeypatch.setattr(memory, "measurable", lambda device: False)


def read(folder: Path) -> dict:
    return json.loads((folder / "exp/asr_tiny/figures.json").read_text())


def test_every_figure_is_measured_written_and_printed(profiled_recipe):
    found, printed = read(profiled_recipe), (profiled_recipe / "stdout").read_text()

    assert found["model"]["encoder"] == "branchformer" and found["model"]["name"] == "asr_tiny"
    assert found["kv_cache"]["encoder"] == {
        "attention": "mla", "layers": 2, "bytes_per_frame": 2 * 8 * 4, "bytes_per_second": 25 * 2 * 8 * 4, "fixed_bytes": 0,
    }  # fmt: skip
    assert found["kv_bytes_per_second"] == 25 * 4 * (
        2 * 8 + 2 * 32
    )  # two layers of rank 8, keys and values of the decoder
    for length, seconds in (("1", 1), ("2", 2)):
        cache, time_ = found["cache"][length], found["encoder"][length]
        frames = cache["encoder"] / (2 * 8 * 4)
        assert frames == pytest.approx(25 * seconds, abs=2) and cache["decoder_src"] == frames * 2 * 32 * 4
        assert cache["bytes"] == cache["encoder"] + cache["decoder_src"]
        assert cache["per_gigabyte"] == 10**9 // cache["bytes"]
        assert 0 < time_["least"] <= time_["seconds"] <= time_["most"] and time_["runs"] >= 2
        assert time_["real_time_factor"] == time_["seconds"] / seconds
        assert found["peak_memory"][length]["encoder"] > 0
    decoding = found["decoding"]
    assert (decoding["utterances"], decoding["audio_seconds"]) == (3, 4.5)
    assert decoding["options"] == {
        "beam_size": 2, "ctc_weight": 0.5, "maxlenratio": 0.2, "minlenratio": 0.0, "penalty": 0.0,
    }  # fmt: skip
    assert found["training"]["epochs"] == 3
    assert list(found["scores"]) == ["decode_asr"]
    of_set = found["scores"]["decode_asr"]["test"]
    assert of_set["wer"] == {"rate": 33.33, "errors": [1, 1], "words": [3, 3]}
    assert of_set["utterances"] == ["s-s-a", "s-s-b"]
    assert found["measured_with"]["threads"] == torch.get_num_threads()
    assert found["measured_with"]["speech"] == "wav.scp"
    for figure in ("attention: encoder mla", "peak memory of the encoder, MB", "encoder, RTF", "beam_size 2"):
        assert figure in printed, figure
    assert re.search(r"epochs +3\n", printed) and re.search(r"WER test, % +33\.33\n", printed)


def test_every_figure_says_what_it_is(profiled_recipe):
    found = read(profiled_recipe)
    listed = {one["key"]: one for one in found["figures"]}
    timed, machine = found["encoder"]["2"], f"{torch.get_num_threads()} threads, float32, PyTorch "
    assert machine in listed["encoder_seconds.2"].pop("condition")
    assert listed["encoder_seconds.2"] == {
        "key": "encoder_seconds.2", "title": "encoder", "table": "Speech of 2 s", "unit": "s", "format": ".3f",
        "lower_is_better": True, "source": "profile", "seconds": 2.0,
        "value": timed["seconds"], "least": timed["least"], "most": timed["most"],
    }  # fmt: skip
    assert listed["wer.test"]["value"] == 33.33 and listed["wer.test"]["decoding"] == "decode_asr"
    assert listed["kv.encoder.fixed_bytes"]["lower_is_better"] is None


@pytest.mark.usefixtures("no_peak_memory")
def test_a_rerun_replaces_the_figures_and_a_failing_one_leaves_them(folder, capsys):
    assert profiled.profile(folder) == 0
    first = read(folder)
    assert profiled.profile(folder, "--utterances", "1") == 0
    assert read(folder)["decoding"]["utterances"] == 1 and first["decoding"]["utterances"] == 3
    soundfile.write(folder / "speech.flac", np.zeros(8000), 8000)
    capsys.readouterr()
    assert profiled.profile(folder) == 1
    assert "has 8000 Hz, but the model takes 16000 Hz" in capsys.readouterr().err
    assert read(folder)["decoding"]["utterances"] == 1


@pytest.mark.usefixtures("no_peak_memory")
def test_without_speech_noise_is_encoded_and_decoding_is_missing(folder, capsys):
    assert profile.main(["--asr_model_file", "exp/asr_tiny/valid.acc.ave.pth", "--seconds", "1"]) == 0
    found = read(folder)
    assert (
        found["measured_with"]["speech"] == "noise" and "decoding" not in found and found["encoder"]["1"]["seconds"] > 0
    )
    printed = capsys.readouterr().out
    assert "Missing: decoding, s, decoding, RTF: --wav_scp names no speech" in printed
    assert "CER test_other, %: nothing was scored" in printed and "epochs: no train.log" in printed


@pytest.mark.usefixtures("no_peak_memory")
def test_an_archive_of_the_model_zoo_is_profiled_too(archive, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "wav.scp").write_text(f"utt {recipe / 'speech.flac'}\n")
    given = ("--model_tag", str(archive), "--wav_scp", "wav.scp", "--seconds", "1", *profiled.DECODING)
    assert profile.main(given) == 0
    found = json.loads((tmp_path / "exp/asr_tiny_valid.acc.ave/figures.json").read_text())
    assert found["model"]["name"] == "asr_tiny_valid.acc.ave" and found["kv_cache"]["encoder"]["attention"] == "mla"
    assert found["training"] is None and found["scores"] == {}
    assert profile.main([*given, "--output_dir", "elsewhere"]) == 0
    assert (tmp_path / "elsewhere/figures.json").is_file()


@pytest.mark.usefixtures("no_peak_memory")
def test_a_plain_espnet_model_is_profiled_the_same_way(folder):
    import experiment

    config = yaml.safe_load((folder / "exp/asr_tiny/config.yaml").read_text())
    del config["encoder_conf"]["attention_conf"]
    config["encoder_conf"]["attention_layer_type"] = "rel_selfattn"
    plain = folder / "exp/asr_plain"
    plain.mkdir()
    (plain / "config.yaml").write_text(yaml.safe_dump(config))
    with contextlib.chdir(folder):
        experiment.add_model(plain)
    given = ("--wav_scp", "wav.scp", "--seconds", "1", *profiled.DECODING)
    (folder / "wav.scp").write_text("utt speech.flac\n")
    assert profile.main(["--asr_model_file", str(plain / "valid.acc.ave.pth"), *given]) == 0
    found = json.loads((plain / "figures.json").read_text())
    kept = found["kv_cache"]["encoder"]
    assert (kept["attention"], kept["bytes_per_frame"]) == ("rel_selfattn", 2 * 2 * 32 * 4)
    assert found["decoding"]["seconds"] > 0


@pytest.mark.usefixtures("no_peak_memory")
def test_the_options_of_a_decoding_configuration_are_taken_and_unknown_ones_named(folder, capsys):
    (folder / "decode.yaml").write_text("beam_size: 3\nctc_weight: 0.4\nbatch_size: 1\nngpu: 0\ndtype: float64\n")
    assert profiled.profile(folder, "--inference_config", "decode.yaml") == 0
    options = read(folder)["decoding"]["options"]
    assert (options["beam_size"], options["ctc_weight"]) == (2, 0.4)  # --beam_size 2 wins
    (folder / "decode.yaml").write_text("beamsize: 3\n")
    capsys.readouterr()
    assert profiled.profile(folder, "--inference_config", "decode.yaml") == 1
    assert "decode.yaml: beamsize is no option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        (["--seconds", "0.5"], 2, "--seconds 0.5: at least 1 is needed"),
        (["--seconds", "inf"], 2, "--seconds inf: at least 1 is needed"),
        (["--utterances", "0"], 2, "--utterances 0: at least 1 is needed"),
        (["--model_tag", "x"], 2, "either --asr_model_file"),
        (["--dtype", "int8"], 2, "invalid choice"),
        (["--wav_scp", "nowhere.scp"], 1, "nowhere.scp does not exist"),
        (["--asr_model_file", "exp/nowhere.pth"], 1, "exp/nowhere.pth does not exist"),
        (["--device", "cuda:99"], 2, "--device cuda:99"),
        (["--device", "meta"], 2, "--device meta: valid are cpu, cuda, cuda:1, ..., and mps"),
    ],
)
def test_bad_input_is_named(folder, capsys, more, status, said):
    try:
        ended = profiled.profile(folder, *more)
    except SystemExit as error:
        ended = error.code
    assert ended == status and said in capsys.readouterr().err
    assert not (folder / "exp/asr_tiny/figures.json").exists()


def test_speech_that_is_too_short_is_an_error_of_one_line(folder, capsys):
    soundfile.write(folder / "speech.flac", np.zeros(800), 16000)
    assert profiled.profile(folder) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: --device cpu --dtype float32: ") and "too short" in said


@pytest.mark.usefixtures("no_peak_memory")
def test_an_encoder_without_caches_has_no_figures_of_them(folder):
    import experiment

    config = yaml.safe_load((folder / "exp/asr_tiny/config.yaml").read_text())
    config |= {"encoder": "vgg_rnn", "encoder_conf": {"hidden_size": 16, "output_size": 32, "num_layers": 1}}
    (folder / "exp/asr_rnn").mkdir()
    (folder / "exp/asr_rnn/config.yaml").write_text(yaml.safe_dump(config))
    experiment.add_model(folder / "exp/asr_rnn")
    assert (
        profile.main(["--asr_model_file", "exp/asr_rnn/valid.acc.ave.pth", "--seconds", "1", "--dtype", "float64"]) == 0
    )
    found = json.loads((folder / "exp/asr_rnn/figures.json").read_text())
    assert "encoder" not in found["kv_cache"] and "kv_bytes_per_second" not in found
    assert "bytes" not in found["cache"]["1"] and found["encoder"]["1"]["seconds"] > 0


@pytest.mark.usefixtures("no_peak_memory")
def test_half_precision_is_measured_in_half_the_bytes(folder):
    assert profiled.profile(folder, "--dtype", "bfloat16") == 0
    found = read(folder)
    assert found["measured_with"]["dtype"] == "bfloat16"
    assert found["kv_cache"]["encoder"]["bytes_per_frame"] == 2 * 8 * 2


@pytest.mark.usefixtures("no_peak_memory")
def test_caches_are_measured_as_they_are_kept(folder, capsys):
    assert profiled.profile(folder, "--cache_dtype", "int8") == 0
    found = read(folder)
    assert found["kv_cache"]["encoder"]["bytes_per_frame"] == 2 * (experiment.RANK + 2)  # layers; and a scale
    assert found["cache"]["1"]["encoder"] == found["kv_cache"]["encoder"]["bytes_per_frame"] * 24
    assert found["measured_with"]["cache_dtype"] == "int8" and "caches in int8" in capsys.readouterr().out


@pytest.mark.usefixtures("no_peak_memory")
def test_a_streaming_models_latency_time_and_state_are_measured_too(folder, capsys):
    experiment.add_variant("streaming", streaming={"chunk_size": 4, "left_chunks": 2})
    (folder / "wav.scp").write_text("utt speech.flac\n")
    given = ("--asr_model_file", "exp/asr_streaming/valid.acc.ave.pth", "--seconds", "1", "--beam_size", "1")
    assert profile.main([*given, "--wav_scp", "wav.scp", "--maxlenratio", "0.1"]) == 0
    found = json.loads((folder / "exp/asr_streaming/figures.json").read_text())["streaming"]
    assert (found["chunk_size"], found["left_chunks"]) == (4, 2)
    assert (found["latency_ms"], found["chunk_ms"], found["look_ahead_ms"]) == (196, 160, 36)
    assert found["attention_bytes"] == 4 * 2 * 2 * 4 * experiment.RANK  # layers, chunks, frames
    assert found["convolution_bytes"] == 4 * 2 * 32 * 15  # layers, channels, half the kernel
    assert found["features_bytes"] == 4 * 3 * 80  # what the subsampling sees of the frames before
    assert found["bytes"] == sum(found[f"{part}_bytes"] for part in ("attention", "convolution", "features"))
    assert found["per_gigabyte"] == 10**9 // found["bytes"]
    chunk = found["chunk"]
    assert 0 < chunk["least"] <= chunk["seconds"] <= chunk["most"] and chunk["audio_seconds"] == 0.16
    printed = capsys.readouterr().out
    assert "chunks of 4 frames, 2 chunks of left context, float32" in printed
    assert re.search(r"latency, ms +196\n", printed) and f"{found['per_gigabyte']:,}\n" in printed


def test_the_reason_why_a_model_cannot_be_streamed_is_logged_and_the_rest_is_measured(folder, capsys):
    experiment.add_variant("streaming", streaming={"chunk_size": 4, "left_chunks": 2})
    config = folder / "exp/asr_streaming/config.yaml"
    config.write_text(
        yaml.safe_dump(yaml.safe_load(config.read_text()) | {"normalize": "utterance_mvn", "normalize_conf": {}})
    )
    (folder / "exp/asr_streaming/valid.acc.ave.pth").unlink()
    experiment.add_model(folder / "exp/asr_streaming")
    source = find(None, "exp/asr_streaming/valid.acc.ave.pth", None)
    assert measuring.stream_figures(source, [torch.rand(16000) - 0.5], "cpu", "float32") is None
    assert "The model can't be streamed: normalize: UtteranceMVN needs the whole utterance" in capsys.readouterr().out
