"""--chunk_size and --left_chunks of decoding: what the log says, what RESULTS.md names, and what is refused."""

import contextlib
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.tasks.abs_task import AbsTask
from espnet2.tasks.asr import ASRTask
from experiment import add_model, add_variant, layout

from espnet_mla.attention import Chunks
from espnet_mla.common.errors import UsageError
from espnet_mla.recipe import scoring
from espnet_mla.recipe.decoding import decode
from espnet_mla.trained import loading
from espnet_mla.trained.inference import CONTEXT, take_options


@pytest.fixture
def folder(recipe, tmp_path):
    """The recipe with a streaming model in place of its own, and a set of one utterance to decode."""
    folder = tmp_path / "recipe"
    shutil.copytree(recipe, folder, symlinks=True)
    with contextlib.chdir(folder):
        add_variant("streaming", streaming={"chunk_size": 4, "left_chunks": 2})
        data = folder / "dump/raw/test"
        data.mkdir(parents=True)
        (data / "wav.scp").write_text("utt speech.flac\n")
        (data / "text").write_text("utt THE CAT SAT\n")
        (data / "utt2spk").write_text("utt speaker\n")
        (data / "feats_type").write_text("raw\n")
        (data / "audio_format").write_text("flac\n")
        yield folder


def heard(*inference_args):
    """The lines of RESULTS.md about latency after decoding so."""
    given = " ".join(("--beam_size 1 --maxlenratio 0.1", *inference_args))
    at = layout("--asr_tag", "streaming", "--inference_args", given, "--inference_nj", "1", "--gpu_inference", "false")
    decode(at)
    scoring.score("dump/raw/test", at.decode_dir("test"), ["wer"])
    results = scoring.write_results(at.asr_exp).read_text()
    return at, results.partition("### Latency\n\n|dataset|attention context|\n|---|---|\n")[2].split("\n\n")[
        0
    ].splitlines()


@pytest.mark.slow
def test_results_name_the_latency_of_every_decoding(folder):
    at, rows = heard()
    default = (
        f"|{at.inference_tag}/test|chunks of 4 frames, 2 left chunks: latency 196 ms (160 ms chunk, 36 ms look-ahead)|"
    )
    assert rows == [default]
    asked, rows = heard("--chunk_size 8 --left_chunks -1")
    other = f"|{asked.inference_tag}/test|chunks of 8 frames, all left chunks: latency 356 ms (320 ms chunk, 36 ms look-ahead)|"
    assert "chunk_size8_left_chunks-1" in asked.inference_tag
    assert sorted(rows) == sorted([default, other])
    scores = {(layout_.decode_dir("test") / "score").read_text() for layout_ in (at, asked)}
    assert len(scores) == 2, "the chunks change nothing"


@pytest.fixture
def build(folder, monkeypatch):
    """What a decoding program with these options makes of a model's files."""

    def build(tag, *options):
        # So that it is put back after the test.
        monkeypatch.setattr(AbsTask, "build_model_from_file", AbsTask.__dict__["build_model_from_file"])
        rest = take_options(["--ngpu", "0", *options, "--beam_size", "1"])
        assert rest == ["--ngpu", "0", "--beam_size", "1"]
        with contextlib.chdir(folder):
            return ASRTask.build_model_from_file(f"exp/{tag}/config.yaml", f"exp/{tag}/valid.acc.ave.pth")[0]

    return build


def test_a_model_of_whole_utterances_is_decoded_as_ever_and_refuses_chunks(build):
    assert build("asr_tiny").encoder.streaming is None
    with pytest.raises(ValueError, match="encoder_conf: streaming is missing"):
        build("asr_tiny", "--chunk_size", "8")


def test_one_of_them_leaves_the_others_to_the_configuration(build):
    assert build("asr_streaming").encoder.chunks == Chunks(4, 2)
    assert build("asr_streaming", "--chunk_size=8").encoder.chunks == Chunks(8, 2)
    assert build("asr_streaming", "--left_chunks", "-1").encoder.chunks == Chunks(4, -1)


def test_look_ahead_can_be_asked_for_and_counts_as_latency(build, caplog):
    with caplog.at_level("INFO"):
        assert build("asr_streaming", "--look_ahead", "8").encoder.chunks == Chunks(4, 2, 8)
    expected = "chunks of 4 frames, 2 left chunks, 8 frames ahead: latency 516 ms (160 ms chunk, 356 ms look-ahead)"
    assert CONTEXT.search(caplog.text)[1] == expected
    with pytest.raises(ValueError, match="look_ahead: 8 needs a number of left_chunks, not -1 for all"):
        build("asr_streaming", "--look_ahead", "8", "--left_chunks", "-1")


def test_the_whole_utterance_can_be_asked_for(build, caplog):
    with caplog.at_level("INFO"):
        assert build("asr_streaming", "--chunk_size=-1").encoder.chunks.size == -1
    assert CONTEXT.search(caplog.text)[1] == "full context"


def test_a_wrong_size_is_refused(build):
    with pytest.raises(ValueError, match="chunk_size: 0 must be a number"):
        build("asr_streaming", "--chunk_size", "0")
    with pytest.raises(UsageError, match="--chunk_size: invalid int value: 'two'"):
        build("asr_streaming", "--chunk_size", "two")


def test_features_that_need_the_whole_utterance_are_decoded_in_chunks_all_the_same(build, folder, caplog):
    config = folder / "exp/asr_streaming/config.yaml"
    conf = yaml.safe_load(config.read_text()) | {"frontend": None, "frontend_conf": {}, "input_size": 80}
    (folder / "exp/asr_features").mkdir()
    (folder / "exp/asr_features/config.yaml").write_text(yaml.safe_dump(conf))
    with contextlib.chdir(folder):
        add_model(Path("exp/asr_features"))
    with caplog.at_level("INFO"):
        assert build("asr_features", "--chunk_size", "8").encoder.chunks == Chunks(8, 2)
    assert "Inference: chunks of 8 frames, 2 left chunks: latency unknown (frontend: null" in caplog.text


def test_an_encoder_that_only_espnet_has_refuses_chunks(build, folder):
    config = folder / "exp/asr_streaming/config.yaml"
    conf = yaml.safe_load(config.read_text()) | {"encoder": "rnn", "encoder_conf": {}}
    (folder / "exp/asr_own").mkdir()
    (folder / "exp/asr_own/config.yaml").write_text(yaml.safe_dump(conf))
    with contextlib.chdir(folder):
        add_model(Path("exp/asr_own"))
    assert build("asr_own")
    with pytest.raises(ValueError, match="--left_chunks: encoder: rnn is no chunked encoder"):
        build("asr_own", "--left_chunks", "8")


def test_caches_are_kept_as_asked_where_there_are_any(build, folder, caplog):
    config = folder / "exp/asr_tiny/config.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"model_conf": {"ctc_weight": 1.0}}))
    with contextlib.chdir(folder):
        (folder / "exp/asr_tiny/valid.acc.ave.pth").unlink()
        add_model(Path("exp/asr_tiny"))
    with caplog.at_level("INFO"):
        model = build("asr_streaming", "--cache_dtype", "int8")
    assert model.encoder.cache_dtype == model.decoder.cache_dtype == "int8" and "Caches: int8" in caplog.text
    with pytest.raises(UsageError, match="cache_dtype: int8: this model keeps no cache"):
        build("asr_tiny", "--cache_dtype", "int8")


def test_a_recogniser_behind_enhancement_is_no_language_model(monkeypatch):
    monkeypatch.setattr(AbsTask, "build_model_from_file", AbsTask.__dict__["build_model_from_file"])
    enhancing, hearing = torch.nn.Module(), torch.nn.Module()
    enhancing.s2t_model, hearing.encoder = hearing, torch.nn.Identity()
    monkeypatch.setattr(loading, "build_model_from_file", lambda *_: (enhancing, Namespace(encoder="rnn")))
    take_options(["--cache_dtype", "int8"])
    with pytest.raises(UsageError, match="this model keeps no cache"):
        AbsTask.build_model_from_file()
