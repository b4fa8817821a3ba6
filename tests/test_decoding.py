"""The real-time factor is read off the logs of decoding."""

from espnet_mla.recipe import decoding

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
