"""Errors of each utterance, read off what stage 13 leaves."""

import random
import re
from pathlib import Path

import pytest

from espnet_mla.common.errors import UserError
from espnet_mla.measure import scores
from espnet_mla.recipe import scoring

WORDS = ["THE", "CAT", "SAT", "ON", "A", "MAT", ";;", "**"]


def score(folder: Path, decoding: str, dset: str, seed: int, utterances: int = 20) -> Path:
    """A decoded and scored set of random words."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 8)))

    data, out = folder / "data" / dset, folder / "exp" / decoding / dset
    for place in (data, out):
        place.mkdir(parents=True, exist_ok=True)
    keys = [f"s{n % 3}-u{n:02}" for n in range(utterances)]
    (data / "text").write_text("".join(f"{key} {text()}\n" for key in keys))
    (data / "utt2spk").write_text("".join(f"{key} {key[:2]}\n" for key in keys))
    (out / "text").write_text("".join(f"{key} {text()}\n" for key in keys[1:]))
    scoring.score(data, out, ("wer", "cer"))
    return out


@pytest.mark.parametrize("seed", range(3))
def test_their_sums_are_the_figures_of_the_result_files(tmp_path, seed):
    out = score(tmp_path, "decode_asr_asr_model_valid.acc.ave", "test", seed)
    found = scores.figures(tmp_path / "exp", Path("valid.acc.ave.pth"))["decode_asr"]["test"]
    assert len(found["utterances"]) == 20
    for kind in ("wer", "cer"):
        result = (out / f"score_{kind}" / "result.txt").read_text()
        raw = re.findall(r"\|\s*Sum\s*\|\s*(\d+)\s+(\d+)\s*\|\s*\d+\s+\d+\s+\d+\s+\d+\s+(\d+)", result)[0]
        assert (20, sum(found[kind]["words"]), sum(found[kind]["errors"])) == tuple(map(int, raw))
        assert found[kind]["rate"] == round(100 * int(raw[2]) / int(raw[1]), 2)


def test_decodings_of_other_models_are_left_out_and_sets_keep_their_folders(tmp_path):
    score(tmp_path, "decode_asr_beam_size5_asr_model_valid.acc.ave", "test", 1)
    score(tmp_path, "decode_asr_beam_size5_asr_model_valid.acc.ave", "org/dev", 2)
    score(tmp_path, "decode_asr_beam_size5_asr_model_latest", "test", 3)
    score(tmp_path, "my_decoding", "test", 4)  # --inference_tag, which names no model
    found = scores.figures(tmp_path / "exp", Path("valid.acc.ave.pth"))
    assert {decoding: sorted(sets) for decoding, sets in found.items()} == {
        "decode_asr_beam_size5": ["org/dev", "test"], "my_decoding": ["test"],
    }  # fmt: skip


def test_nothing_scored_is_nothing_and_half_a_score_is_named(tmp_path):
    assert scores.figures(tmp_path, Path("valid.acc.ave.pth")) == {}
    out = score(tmp_path, "decode_asr_asr_model_valid.acc.ave", "test", 1)
    hypotheses = out / "score_wer" / "hyp.trn"
    hypotheses.write_text(hypotheses.read_text() + "A LINE WITHOUT ITS NAME\n")
    with pytest.raises(UserError, match=r"hyp\.trn, line 21: not a text, a tab"):
        scores.figures(tmp_path / "exp", Path("valid.acc.ave.pth"))
    (out / "score_wer" / "hyp.trn").unlink()
    with pytest.raises(UserError, match=r"hyp\.trn does not exist: score again"):
        scores.figures(tmp_path / "exp", Path("valid.acc.ave.pth"))


def test_experiments_within_an_experiment_and_odd_names_of_utterances(tmp_path):
    out = score(tmp_path, "decode_asr_asr_model_valid.acc.ave", "test", 1)
    score(tmp_path, "converted/decode_asr_asr_model_valid.acc.ave", "test", 2)
    for name in ("ref.trn", "hyp.trn"):
        path = out / "score_wer" / name
        path.write_text(path.read_text().replace("u01)", "u(1))"))
    found = scores.figures(tmp_path / "exp", Path("valid.acc.ave.pth"))
    assert list(found) == ["decode_asr"] and list(found["decode_asr"]) == ["test"]
    assert len(found["decode_asr"]["test"]["wer"]["words"]) == 20
