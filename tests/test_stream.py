"""espnet-mla stream: a file or the standard input, as it arrives."""

import contextlib
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import soundfile
from experiment import add_variant, samples

from espnet_mla import StreamingSpeech2Text
from espnet_mla.streaming import command


@pytest.fixture(scope="module")
def model(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream") / "recipe"
    shutil.copytree(recipe, folder, symlinks=True)
    with contextlib.chdir(folder):
        add_variant("streaming", streaming={"chunk_size": 4, "left_chunks": 2})
    return folder / "exp/asr_streaming"


@pytest.fixture(scope="module")
def expected(model, recipe):
    recogniser = StreamingSpeech2Text(model)
    recogniser.accept(samples(recipe))
    result = recogniser.finish()
    assert result.text
    return result


def pcm(speech):
    return (speech * 32768).round().astype("<i2").tobytes()


def test_partial_text_is_shown_with_its_second_and_the_whole_at_the_end(model, recipe, expected, capfd):
    speech = str(recipe / "speech.flac")
    assert command.main([str(model), speech]) == 0
    out, err = capfd.readouterr()
    assert out == f"{speech}\t{expected.text}\n"
    lines = [line.split(" s  ") for line in err.splitlines() if " s  " in line]
    seconds = [float(second) for second, _ in lines]
    assert len(lines) > 1 and seconds == sorted(seconds) and seconds[-1] <= 1.5
    assert len({text for _, text in lines}) == len(lines)


def test_times_gives_a_line_for_each_token(model, recipe, expected, capfd):
    assert command.main([str(model), str(recipe / "speech.flac"), "--times"]) == 0
    lines = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert [token for _, token in lines] == expected.tokens
    assert [float(second) for second, _ in lines] == pytest.approx(expected.times, abs=0.005)


def test_the_standard_input_is_16_bit_pcm_however_it_is_cut(model, recipe, monkeypatch, capfd):
    data = pcm(samples(recipe))

    class Cut(io.RawIOBase):
        def __init__(self):
            self.at = 0

        def read1(self, _):
            piece = data[self.at : self.at + 3333]  # an odd number of bytes
            self.at += 3333
            return piece

    class Stdin:
        buffer = Cut()

    recogniser = StreamingSpeech2Text(model)
    recogniser.accept(np.frombuffer(data, "<i2"))
    monkeypatch.setattr(sys, "stdin", Stdin())
    assert command.main([str(model), "-"]) == 0
    assert capfd.readouterr().out == f"{recogniser.finish().text}\n"


def test_the_standard_input_may_have_another_rate(model, recipe, monkeypatch, capfd):
    import soxr

    slower = pcm(soxr.resample(samples(recipe), 16000, 8000))
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BufferedReader(io.BytesIO(slower))}))
    assert command.main([str(model), "-", "--fs", "8000"]) == 0
    recogniser = StreamingSpeech2Text(model, fs=8000)
    recogniser.accept(np.frombuffer(slower, "<i2"))
    assert capfd.readouterr().out == f"{recogniser.finish().text}\n"


def test_a_microphone_that_is_stopped_by_ctrl_c_gives_the_final_text(model, recipe):
    """As a shell stops both ends of a pipe; the end of what was said is in the text."""
    program = [sys.executable, "-m", "espnet_mla.cli", "stream", str(model), "-"]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    speech = samples(recipe)
    process.stdin.write(pcm(speech))
    process.stdin.flush()
    line = b""
    while b" s  " not in line:  # until it listens
        line = process.stderr.readline()
        assert line, "it ended before it recognised anything"
    waiting = bytearray(4)
    while any(fcntl.ioctl(process.stdin, termios.FIONREAD, waiting) or waiting):  # until it has read all
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    recogniser = StreamingSpeech2Text(model)
    recogniser.accept(np.frombuffer(pcm(speech), "<i2"))
    assert out.decode() == f"{recogniser.finish().text}\n" and process.returncode == 0


def test_realtime_is_no_faster_than_it_was_spoken(model, recipe, expected, monkeypatch, capfd):
    now = [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(command.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    speech = str(recipe / "speech.flac")
    assert command.main([str(model), speech, "--realtime"]) == 0
    assert now[0] == pytest.approx(len(samples(recipe)) / 16000)
    assert capfd.readouterr().out == f"{speech}\t{expected.text}\n"
    now[0] = 0.0
    assert command.main([str(model), speech]) == 0 and now[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.flac"], "error: absent.flac does not exist\n"),
        (["short.wav"], "error: short.wav: 0.006 s are too short for the model\n"),
        (["nan.wav"], "error: nan.wav: samples that are not finite numbers"),
        (["speech.flac", "--chunk_size", "0"], "error: chunk_size: 0 must be a number of encoder frames"),
    ],
)
def test_what_cannot_be_done_is_named(model, recipe, tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    shutil.copy(recipe / "speech.flac", "speech.flac")
    soundfile.write("short.wav", samples(recipe)[:100], 16000)
    soundfile.write("nan.wav", samples(recipe) * np.nan, 16000, subtype="FLOAT")
    assert command.main([str(model), *arguments]) == 1
    assert message in capfd.readouterr().err


def test_a_model_of_whole_utterances_says_which_key_it_lacks(recipe, capfd):
    assert command.main([str(recipe / "exp/asr_tiny"), str(recipe / "speech.flac")]) == 1
    assert "error: encoder_conf: streaming is missing" in capfd.readouterr().err


def test_ctrl_c_while_a_chunk_is_computed_waits_for_it(model, recipe, monkeypatch, capfd):
    """Nothing of what was computed is lost, and what came before is in the text."""
    data = pcm(samples(recipe))
    recogniser = StreamingSpeech2Text(model)
    recogniser.accept(np.frombuffer(data, "<i2"))
    from espnet2.asr.layers.cgmlp import ConvolutionalGatingMLP

    forward, calls = ConvolutionalGatingMLP.forward, []

    def interrupted(self, *arguments):
        calls.append(self)
        if len(calls) == 3:  # the second chunk's first layer
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *arguments)

    monkeypatch.setattr(ConvolutionalGatingMLP, "forward", interrupted)
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BufferedReader(io.BytesIO(data), len(data))}))
    monkeypatch.setattr(command, "STDIN_BYTES", len(data))
    assert command.main([str(model), "-"]) == 0
    assert capfd.readouterr().out == f"{recogniser.finish().text}\n"


CONTAINERS = [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16")]


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_with_a_header_on_the_standard_input_is_refused_with_what_to_do(
    model, recipe, monkeypatch, capfd, container
):
    content = io.BytesIO()
    soundfile.write(content, samples(recipe), 16000, format=container[0], subtype=container[1])

    class Slow(io.RawIOBase):
        def read1(self, _):
            return content.read(5)

    content.seek(0)
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": Slow()}))
    assert command.main([str(model), "-"]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("error: the standard input is a") and "ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -" in err


def test_a_closed_standard_input_is_one_clear_line(model):
    program = f'exec "{sys.executable}" -m espnet_mla.cli stream "{model}" - <&-'
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: the standard input is closed\n")


def test_nothing_on_the_standard_input_is_an_empty_text(model, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BufferedReader(io.BytesIO())}))
    assert command.main([str(model), "-"]) == 0
    assert capfd.readouterr().out == "\n"


def test_a_device_that_is_none_is_a_wrong_use(model, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([str(model), "a.flac", "--device", "bogus"])
    assert ended.value.code == 2 and "--device bogus" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["a.flac", "--fs", "8000"], ["-", "--fs", "0"]])
def test_a_wrong_rate_is_a_wrong_use(model, wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([str(model), *wrong])
    assert ended.value.code == 2 and "--fs" in capsys.readouterr().err
