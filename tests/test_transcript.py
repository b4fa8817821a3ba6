"""Transcripts of long recordings, in batches and with times; how they are written, and how their errors are counted."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from experiment import DECODING, heard, samples

import espnet_mla
from espnet_mla.common.errors import UserError
from espnet_mla.trained import error_rates, transcribe, written
from espnet_mla.trained.transcript import LONGEST, Segment, Transcript, pieces

FLAGS = [word for name, value in DECODING.items() for word in (f"--{name}", str(value))]
RATE = 16000
TALK = Transcript(
    "HELLO THERE YOU", (Segment(0.25, 1.5, "HELLO THERE"), Segment(3, 4, ""), Segment(3599.9996, 3661.5, "YOU"))
)


def noise(seconds: float, level: float = 0.3) -> np.ndarray:
    return np.random.default_rng(0).uniform(-level, level, round(seconds * RATE)).astype(np.float32)


def test_a_recording_is_cut_at_silences_into_pieces_that_hold_all_of_its_sound():
    sound, silence = noise(8), noise(1.0, 1e-5)
    recording = np.concatenate([silence, *([sound, silence] * 9)])
    cut = list(pieces(recording, RATE))
    assert len(cut) == 3 and all((last - first) / RATE <= LONGEST for first, last in cut)
    assert all(end <= start for (_, end), (start, _) in pairwise(cut))
    inside = np.zeros(len(recording), bool)
    for first, last in cut:
        inside[first:last] = True
    assert inside[np.abs(recording) > 1e-3].all() and not inside[: RATE // 2].any()


def test_sound_without_a_silence_is_cut_all_the_same_and_silence_gives_nothing_wrong():
    cut = list(pieces(noise(70), RATE))
    assert [first for first, _ in cut] == [0, *[last for _, last in cut[:-1]]] and cut[-1][1] == 70 * RATE
    assert len(cut) == 3 and max(last - first for first, last in cut) <= LONGEST * RATE
    assert len(list(pieces(np.zeros(RATE, np.float32), RATE))) <= 1


def test_a_long_recording_has_the_texts_of_its_pieces_with_their_times(recipe, archive, tmp_path, capfd):
    speech, silence = samples(recipe), np.zeros(30 * RATE, np.float32)
    recording = np.concatenate([speech, silence, speech])
    soundfile.write(tmp_path / "long.flac", recording, RATE)
    recording, _ = soundfile.read(tmp_path / "long.flac", dtype="float32")
    arguments = [str(archive), str(tmp_path / "long.flac"), "--long", "--device", "cpu", *FLAGS]
    assert transcribe.main([*arguments, "--format", "json"]) == 0
    found = json.loads(capfd.readouterr().out)
    model = espnet_mla.from_pretrained(archive, **DECODING)
    texts = [heard(model, recording[first:last])[0][0] for first, last in pieces(recording, RATE)]
    assert [segment["text"] for segment in found["segments"]] == texts and found["text"] == " ".join(texts)
    first, second = found["segments"]
    assert first["start"] == 0 and first["end"] == pytest.approx(1.5, abs=0.2)
    assert second["start"] == pytest.approx(31.5, abs=0.2) and second["end"] == pytest.approx(33.0, abs=0.01)
    assert found["seconds"] == 33
    assert transcribe.main([*arguments, "--format", "srt"]) == 0
    assert capfd.readouterr().out.count(" --> ") == 2


def test_a_batch_hears_what_one_at_a_time_hears_and_survives_a_file_that_is_too_short(
    recipe, archive, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    speech, names = samples(recipe), ["a.wav", "b.wav", "short.wav", "c.wav", "absent.wav"]
    for name, part in zip(names, (speech, speech[:16000], speech[:100], speech[4000:]), strict=False):
        soundfile.write(name, part, RATE)
    arguments = [str(archive), *names, "--device", "cpu", *FLAGS]
    outputs = []
    for size in ("1", "2", "8"):
        assert transcribe.main([*arguments, "--batch_size", size]) == 1
        out, err = capfd.readouterr()
        assert sum(line.startswith("error: ") for line in err.splitlines()) == 2
        outputs.append(sorted(out.splitlines()))
    assert len(outputs[0]) == 3 and outputs[0] == outputs[1] == outputs[2]


def test_error_rates_are_jiwers_over_all_files(recipe, archive, expected, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    soundfile.write("speech.wav", samples(recipe), RATE)
    (tmp_path / "text").write_text(f"speech {expected[0][0]} AND MORE\nother NOT ASKED FOR\n")
    assert (
        transcribe.main([str(archive), "speech.wav", "--text", "text", "--alignment", "--device", "cpu", *FLAGS]) == 0
    )
    out, err = capfd.readouterr()
    words = len(expected[0][0].split())
    assert out == f"speech.wav\t{expected[0][0]}\n"
    assert f"WER {200 / (words + 2):.2f} %: 0 substitutions, 2 deletions, 0 insertions in {words + 2} words" in err
    assert "CER " in err and "REF: " in err and "*" in err


def test_a_missing_reference_is_named_before_the_model_is_loaded(archive, tmp_path, capsys):
    (tmp_path / "text").write_text("other A\nempty \n")
    for name, said in (("speech", "lacks speech, for speech.wav"), ("empty", "empty has no words")):
        assert transcribe.main([str(archive), f"{name}.wav", "--text", str(tmp_path / "text")]) == 1
        assert capsys.readouterr().err == f"error: --text {tmp_path / 'text'}{' ' if 'lacks' in said else ': '}{said}\n"


def test_references_are_found_under_the_files_name_with_or_without_its_ending(tmp_path):
    (tmp_path / "text").write_text("a ONE\nb.wav TWO\ndir/c.wav THREE\n")
    found = error_rates.references(tmp_path / "text", ["dir/a.flac", "dir/b.wav", "dir/c.wav"])
    assert list(found.values()) == ["ONE", "TWO", "THREE"]
    with pytest.raises(UserError, match="does not exist"):
        error_rates.references(tmp_path / "nowhere", ["a"])


@pytest.mark.parametrize("more", [(), ("--long",), ("--batch_size", "2")])
def test_words_have_their_times_and_confidence(recipe, archive, tmp_path, monkeypatch, capfd, more):
    monkeypatch.chdir(tmp_path)
    speech = samples(recipe)
    before = 5 if "--long" in more else 0  # seconds of silence
    for name in ("a b.wav", "c.wav"):
        soundfile.write(name, np.concatenate([np.zeros(before * RATE, np.float32), speech]), RATE)
    arguments = [str(archive), "a b.wav", "c.wav", "--device", "cpu", *more, *FLAGS]
    assert transcribe.main([*arguments, "--format", "json", "--words"]) == 0
    lines = capfd.readouterr().out.splitlines()
    (segment,) = json.loads(lines[0])["segments"]
    assert [word["text"] for word in segment["words"]] == segment["text"].split() != []
    assert all(segment["start"] <= word["start"] < word["end"] for word in segment["words"])
    assert before - 0.2 <= segment["words"][0]["start"] and segment["words"][-1]["end"] <= before + 1.6
    assert transcribe.main([*arguments, "--format", "ctm"]) == 0
    written_ = capfd.readouterr().out.splitlines()
    assert len(written_) == 2 * len(segment["words"])
    for line, word in zip(written_, segment["words"], strict=False):
        name, channel, start, duration, text, confidence = line.split()
        assert (name, channel, text) == ("a_b", "1", word["text"])
        assert float(start) == pytest.approx(word["start"], abs=0.006)
        assert float(duration) == pytest.approx(word["end"] - word["start"], abs=0.006)
        assert float(confidence) == pytest.approx(word["confidence"], abs=0.006)
    assert transcribe.main([*arguments, "--format", "json"]) == 0
    assert '"words"' not in capfd.readouterr().out


def test_a_text_that_ctc_cannot_spell_is_named(recipe, archive, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", samples(recipe), RATE)
    monkeypatch.setattr("espnet_mla.trained.words.align", lambda *_: None)
    assert transcribe.main([str(archive), "a.wav", "--format", "ctm", "--device", "cpu", *FLAGS]) == 0
    out, err = capfd.readouterr()
    assert out == "" and "warning: a.wav: CTC can't spell the text in so few frames" in err


def test_subtitles_have_the_times_of_segments_with_a_text():
    assert written.subtitles(TALK, "srt") == (
        "1\n00:00:00,250 --> 00:00:01,500\nHELLO THERE\n\n2\n01:00:00,000 --> 01:01:01,500\nYOU\n"
    )
    assert written.subtitles(TALK, "vtt") == (
        "WEBVTT\n\n00:00:00.250 --> 00:00:01.500\nHELLO THERE\n\n01:00:00.000 --> 01:01:01.500\nYOU\n"
    )


def test_subtitles_of_several_files_go_to_a_folder(recipe, archive, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "b.wav"):
        soundfile.write(name, samples(recipe), RATE)
    arguments = [str(archive), "a.wav", "b.wav", "--format", "vtt", "--device", "cpu", *FLAGS]
    assert transcribe.main([*arguments, "--output_dir", "made/subtitles"]) == 0
    assert capfd.readouterr().out == ""
    texts = {path.name: path.read_text() for path in (tmp_path / "made/subtitles").iterdir()}
    assert texts.keys() == {"a.vtt", "b.vtt"} and all(
        text.startswith("WEBVTT\n\n00:00:00.000") for text in texts.values()
    )


@pytest.mark.parametrize("wrong, said", [
    (("--format", "srt", "a.wav", "b.wav"), "--format srt: of several files it needs --output_dir"),
    (("--output_dir", "x", "a.wav"), "--output_dir x: it is for srt and vtt; text is printed"),
    (("--format", "vtt", "--output_dir", "x", "a/c.wav", "b/c.wav"), "two of the files would be c.vtt"),
    (("--format", "json", "--timing", "a.wav"), "--timing: --format json has no columns"),
    (("--alignment", "a.wav"), "--alignment needs --text"),
    (("--words", "a.wav"), "--words: --format text has no place for them; json has, and ctm has words anyway"),
    (("--batch_size", "0", "a.wav"), "--batch_size 0: a whole number of at least 1 is needed"),
    (("--batch_size", "2", "--long", "a.wav"), "with --long recordings are decoded one at a time"),
    (("--lm_file", "lm.pth", "a.wav"), "needs both --lm_train_config and --lm_file"),
    (("--ngram_file", "nowhere.bin", "a.wav"), "--ngram_file nowhere.bin: there is no such file"),
    (("--predict_time", "a.wav"), "--predict_time: only a model for speech to text with prompts (S2T) does"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_named(wrong, said, archive, capsys):
    with pytest.raises(SystemExit, match="2"):
        transcribe.main([str(archive), *wrong])
    assert said in capsys.readouterr().err


def test_a_language_model_joins_the_search(recipe, archive, expected, tmp_path, monkeypatch, capfd):
    """ESPnet's own, with random weights; what is heard is what ESPnet hears with it."""
    monkeypatch.chdir(tmp_path)
    tokens = espnet_mla.from_pretrained(archive).asr_model.token_list
    (tmp_path / "tokens.txt").write_text("\n".join(tokens) + "\n")
    command = ["-m", "espnet2.bin.lm_train", "--dry_run", "true", "--output_dir", "lm", "--token_list", "tokens.txt",
               "--lm", "transformer", "--lm_conf", "unit=16", "--lm_conf", "embed_unit=8", "--lm_conf", "head=2",
               "--lm_conf", "layer=1", "--token_type", "char"]  # fmt: skip
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    import torch
    from espnet2.tasks.lm import LMTask

    torch.manual_seed(1)
    model, _ = LMTask.build_model_from_file("lm/config.yaml")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    torch.save(model.state_dict(), "lm/lm.pth")
    soundfile.write("speech.flac", samples(recipe), RATE)
    files = {"lm_train_config": "lm/config.yaml", "lm_file": "lm/lm.pth", "lm_weight": 0.7}
    with_lm = heard(espnet_mla.from_pretrained(archive, **files, **DECODING), samples(recipe))
    assert with_lm[0][0] != expected[0][0], "a model that changes nothing would show nothing"
    options = [word for name, value in files.items() for word in (f"--{name}", str(value))]
    assert transcribe.main([str(archive), "speech.flac", "--device", "cpu", *options, *FLAGS]) == 0
    assert capfd.readouterr().out == f"speech.flac\t{with_lm[0][0]}\n"
