"""The real-time factor is read off the logs of decoding; what a run that was cut off has decoded is not lost."""

from pathlib import Path

import pytest

from espnet_mla.common.errors import UserError
from espnet_mla.recipe import decoding
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse

LOG = """\
2026-01-01 10:00:00,000 (asr_inference:571) INFO: speech length: 32000
2026-01-01 10:00:01,000 (asr_inference:646) INFO: best hypo: A
2026-01-01 10:00:02,000 (asr_inference:571) INFO: speech length: 16000
2026-01-01 10:00:02,500 (asr_inference:646) INFO: best hypo: B
"""


def test_time_is_counted_from_reading_an_utterance_to_its_hypothesis(tmp_path):
    log = tmp_path / "asr_inference.1.log"
    log.write_text(LOG)
    speed = decoding.real_time_factor([log], 16000)
    assert speed is not None and speed.splitlines() == [
        "Total audio duration: 3.000 [sec]", "Total decoding time: 1.500 [sec]", "RTF: 0.500",
        "Latency: 750.000 [ms/sentence]",
    ]  # fmt: skip


def test_an_utterance_without_hypothesis_leaves_the_factor_open(tmp_path):
    log = tmp_path / "asr_inference.1.log"
    log.write_text(LOG.rsplit("2026", 1)[0])
    assert decoding.real_time_factor([log], 16000) is None


OPTIONS = ("--train_set", "train", "--valid_set", "dev", "--test_sets", "a b c", "--asr_tag", "x", "--ngpu", "0")


@pytest.fixture
def decoded(tmp_path, monkeypatch):
    """The sets that are decoded, in a folder that has all that stage 12 starts from; decoding `b` can be made to fail."""
    monkeypatch.chdir(tmp_path)
    for name in ("exp/asr_x/config.yaml", "exp/asr_x/valid.acc.ave.pth", *(f"dump/raw/{s}/wav.scp" for s in "abc")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{encoder: rnn, ctc_conf: {}, token_list: tokens.txt}\n" if "config" in name else "{}\n")
    sets = []

    def decode_set(_, dset):
        sets.append(dset)
        if dset == "b" and sets.count("b") == 1:
            raise UserError("cut off")

    monkeypatch.setattr(decoding, "decode_set", decode_set)
    return sets


def decode(*options):
    decoding.decode(Layout(parse([*OPTIONS, *options])))


def test_after_a_run_that_was_cut_off_the_sets_it_had_done_are_not_decoded_again(decoded):
    with pytest.raises(UserError, match="cut off"):
        decode()
    decode()
    assert decoded == ["a", "b", "b", "c"]
    decode()  # after one that has ended, all are: whoever runs the stage again wants that
    assert decoded[4:] == ["a", "b", "c"]


@pytest.mark.parametrize("changed", ["model", "audio", "options"])
def test_they_are_where_what_they_came_from_has_changed(decoded, changed):
    given = ("--inference_tag", "decode")
    with pytest.raises(UserError, match="cut off"):
        decode(*given)
    Path({"model": "exp/asr_x/valid.acc.ave.pth", "audio": "dump/raw/b/wav.scp"}.get(changed, "other")).write_text(
        "new"
    )
    decode(*given, *(("--inference_args", "--beam_size 2") if changed == "options" else ()))
    assert decoded == ["a", "b", "a", "b", "c"]
