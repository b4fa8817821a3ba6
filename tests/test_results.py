"""What is committed of the mini corpus is what its configurations must keep."""

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[1] / "egs2/librispeech_100/asr1/results/mini"
D_MODEL, LAYERS, HEADS = 96, 4, 4  # as run.sh scales the confs
KEPT = {"mha": 2 * D_MODEL, "gqa": 2 * D_MODEL // HEADS, "mla": 24, "linear": 0}  # numbers a frame and layer
STATE = HEADS * (D_MODEL // HEADS + 1) * (D_MODEL // HEADS)


@pytest.fixture(scope="module")
def rows():
    return json.loads((RESULTS / "comparison.json").read_text())["rows"]


def of_decoder(row) -> bool:
    """Whether its decoder has a latent too."""
    return "mla_decoder" in row["model"]


def test_three_seeds_of_every_pair_have_every_figure(rows):
    pairs = [(row["encoder"], row["attention"]) for row in rows if not of_decoder(row)]
    assert {*pairs} == {(encoder, kind) for encoder in ("conformer", "branchformer", "e_branchformer") for kind in KEPT}
    latent = [(row["encoder"], row["attention"]) for row in rows if of_decoder(row)]
    assert len(pairs) == 12 and sorted(latent) == [("branchformer", "mla"), ("conformer", "mla")]
    assert all(len(row["members"]) == 3 for row in rows)
    assert all(figure["value"] is not None for row in rows for figure in row["figures"].values())


def test_it_is_what_the_kept_figures_give(rows):
    kept = {path.parent.name: json.loads(path.read_text()) for path in RESULTS.glob("figures/*/figures.json")}
    assert {name for row in rows for name in row["members"]} == kept.keys()
    for row in rows:
        rates = [kept[name]["scores"]["decode_asr_beam_size5"]["test_other"]["wer"]["rate"] for name in row["members"]]
        assert row["figures"]["wer.test_other"]["value"] == pytest.approx(sum(rates) / 3)


def test_caches_are_exactly_those_of_the_table_of_attentions(rows):
    for row in rows:
        value = {key: figure["value"] for key, figure in row["figures"].items()}
        numbers = KEPT[row["attention"]]
        assert value["kv.encoder.bytes_per_frame"] == 4 * LAYERS * numbers
        assert value["kv.encoder.bytes_per_second"] == 25 * 4 * LAYERS * numbers
        assert value["kv.encoder.fixed_bytes"] == (4 * LAYERS * STATE if row["attention"] == "linear" else 0)
        frames = 249  # of 10 s, whose ends lose one
        source = 2 * (KEPT["mla"] if of_decoder(row) else 2 * D_MODEL)  # layers
        assert value["cache.10"] == frames * 4 * (LAYERS * numbers + source) + value["kv.encoder.fixed_bytes"]
        assert value["per_gigabyte.10"] == 10**9 // value["cache.10"]


def test_every_file_says_that_the_speech_is_synthesised():
    for name in ("RESULTS.md", "comparison.json", "report.html"):
        assert "Mini corpus: synthesised speech, for trying the machinery." in (RESULTS / name).read_text()
