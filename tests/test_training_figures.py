"""Epochs and seconds of a training, read off the trainer's logs."""

from profiled import TRAIN_LOG, epoch

from espnet_mla.measure import training


def test_seconds_are_the_trainers_of_training_and_validation(tmp_path):
    (tmp_path / "train.log").write_text(TRAIN_LOG)
    assert training.figures(tmp_path) == {
        "epochs": 3,
        "seconds": round(10.95 + 0.31 + 62.5 + 2 + 3721 + 61, 1),
        "finished": "2026-11-24",
        "running_on": "AMD EPYC, 2 cores, 1 threads",
    }


def test_an_epoch_that_a_rerun_did_again_counts_once_by_its_last_run(tmp_path):
    (tmp_path / "train.1.log").write_text(TRAIN_LOG)  # which ESPnet has moved out of the way
    again = "# Running on Intel Xeon, 4 cores, 4 threads\n" + epoch(3, 30, "5 seconds", "1 second")
    (tmp_path / "train.log").write_text(again + epoch(4, 31, "5 seconds", "1 second"))
    found = training.figures(tmp_path)
    assert found["epochs"] == 4 and found["seconds"] == round(10.95 + 0.31 + 64.5 + 6 + 6, 1)
    assert found["running_on"] == "AMD EPYC, 2 cores, 1 threads; Intel Xeon, 4 cores, 4 threads"


def test_logs_without_an_epoch_tell_nothing(tmp_path):
    assert training.figures(tmp_path) is None
    (tmp_path / "train.log").write_text("# Started at ...\nTraceback\n")
    assert training.figures(tmp_path) is None


def test_a_log_that_does_not_name_its_machine_says_so(tmp_path):
    (tmp_path / "train.log").write_text(epoch(1, 1, "2 seconds", "1 second"))
    assert training.figures(tmp_path)["running_on"] is None
