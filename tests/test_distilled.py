"""espnet_mla.models.distilled: the losses by their definitions, and what is and is not part of the model."""

import contextlib
import itertools

import pytest
import torch
from espnet2.tasks.asr import ASRTask
from hypothesis import given
from hypothesis import strategies as st

import espnet_mla
from espnet_mla.common.errors import UserError
from espnet_mla.models import distilled


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(0, 100))
def test_losses_are_those_of_the_definitions_over_the_frames_that_are_there(batch, time, size, seed):
    generator = torch.Generator().manual_seed(seed)
    got, wanted = torch.randn(2, batch, time, size, generator=generator)
    mask = torch.rand(batch, time, generator=generator) < 0.7
    mask[0, 0] = True
    places = [(b, t) for b in range(batch) for t in range(time) if mask[b, t]]
    error = sum((got[at] - wanted[at]).square().sum() for at in places) / sum(
        wanted[at].square().sum() for at in places
    )
    torch.testing.assert_close(distilled.relative_error(got, wanted, mask), error)
    p, q = wanted.log_softmax(-1), got.log_softmax(-1)
    kl = sum((p[at].exp() * (p[at] - q[at])).sum() for at in places) / len(places)
    torch.testing.assert_close(distilled.divergence(q, p, mask), kl)


@pytest.fixture
def models(recipe_copy):
    """The model of a recipe, and one that is distilled from it, with the same weights."""
    espnet_mla.register()
    with contextlib.chdir(recipe_copy):
        teacher, args = ASRTask.build_model_from_file("exp/asr_tiny/config.yaml", "exp/asr_tiny/valid.acc.ave.pth")
        args.model, args.model_conf = "distilled", {**args.model_conf, "teacher": "exp/asr_tiny/valid.acc.ave.pth"}
        student = ASRTask.build_model(args)
        student.load_state_dict(teacher.state_dict())
        yield teacher.eval(), student


def batch(text=True):
    torch.manual_seed(0)
    speech = {"speech": torch.randn(2, 16000), "speech_lengths": torch.tensor([16000, 9000])}
    tokens = {"text": torch.tensor([[4, 5, 6], [7, 8, -1]]), "text_lengths": torch.tensor([3, 2])}
    return speech | (tokens if text else {})


@pytest.mark.parametrize("text", [False, True])
def test_a_model_like_its_teacher_has_no_loss_and_another_one_has(models, text):
    _, student = models
    loss, stats, weight = student(**batch(text))
    assert loss.item() < 1e-6 and weight == 2
    assert {"loss", "blocks", "output", "kl_ctc", "decoder_blocks", "kl_decoder"} <= stats.keys()
    with torch.no_grad():
        student.encoder.encoders[0].attn.linear_out.weight.mul_(1.5)
    loss, stats, _ = student(**batch(text))
    assert loss.item() > 1e-4 and all(stats[name] > 0 for name in ("blocks", "output", "kl_ctc"))


@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 100))
def test_without_a_text_it_is_the_most_probable_labels_of_ctc(batch, time, seed):
    generator = torch.Generator().manual_seed(seed)
    posteriors = torch.randn(batch, time, 4, generator=generator)
    lengths = torch.randint(1, time + 1, (batch,), generator=generator)
    expected = [
        [token for token, _ in itertools.groupby(row[:length].argmax(-1).tolist()) if token]
        for row, length in zip(posteriors, lengths, strict=True)
    ]
    text, sizes = distilled.recognised(posteriors, lengths, blank=0)
    assert [row[:size].tolist() for row, size in zip(text, sizes, strict=True)] == expected
    assert all((row[size:] == -1).all() for row, size in zip(text, sizes, strict=True))


def test_the_student_is_compared_over_what_its_teacher_recognises(models):
    teacher, student = models
    with torch.no_grad():
        student.ctc.ctc_lo.bias[0] += 100  # it would recognise nothing
        given = batch(text=False)
        wanted = distilled.heard(teacher, given["speech"], given["speech_lengths"], None, None)
        got = distilled.heard(student, given["speech"], given["speech_lengths"], None, None, teachers=wanted)
    assert wanted.text[0].numel() and got.text is wanted.text and got.decoder.shape == wanted.decoder.shape


def test_padding_changes_nothing(models):
    _, student = models
    with torch.no_grad():
        student.encoder.encoders[0].attn.linear_out.weight.mul_(1.5)
    alone = {"speech": batch()["speech"][1:, :9000], "speech_lengths": torch.tensor([9000])}
    padded = {"speech": batch()["speech"][1:], "speech_lengths": torch.tensor([9000])}
    for name, value in student(**alone)[1].items():
        torch.testing.assert_close(student(**padded)[1][name], value, rtol=1e-4, atol=1e-7)


def test_the_teacher_is_no_part_of_the_model_and_learns_nothing(models):
    teacher, student = models
    before = {name: value.clone() for name, value in student.teacher().state_dict().items()}
    loss = student(**batch())[0] + sum(weight.square().sum() for weight in student.parameters())
    loss.backward()
    torch.optim.SGD(student.parameters(), 0.1).step()
    assert student.state_dict().keys() == teacher.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in student.teacher().state_dict().items())
    assert not torch.equal(student.ctc.ctc_lo.weight, student.teacher().ctc.ctc_lo.weight)


def test_it_stays_in_inference_mode(models):
    assert not any(module.training for module in models[1].train().modules())


def test_labels_add_the_loss_that_espnet_trains_with(models):
    teacher, student = models
    student.labels = 0.5
    expected = 0.5 * teacher(**batch())[0]
    torch.testing.assert_close(student(**batch())[0], expected, rtol=1e-4, atol=1e-6)


def test_with_labels_espnets_figures_are_there_and_training_decodes_nothing(models):
    _, student = models
    student.labels = 1.0
    training, validation = student.train()(**batch())[1], student.eval()(**batch())[1]
    assert training["acc"] is not None and training["cer"] is None and training["cer_ctc"] is None
    assert validation["acc"] is not None and validation["cer"] is not None


def test_a_teacher_that_is_missing_or_has_other_tokens_is_named(models):
    _, student = models
    student.token_list = student.token_list[::-1]
    with pytest.raises(UserError, match=r"teacher: exp/asr_tiny/valid.acc.ave.pth has another token_list"):
        student(**batch())
    student.teacher_file = student.teacher_file.with_name("other.pth")
    with pytest.raises(UserError, match=r"model_conf: teacher: exp/asr_tiny/other.pth: .*does not exist"):
        student(**batch())


def test_a_loss_that_is_not_a_number_ends_it(models):
    _, student = models
    with torch.no_grad():
        student.ctc.ctc_lo.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        student(**batch())


def test_it_decodes_without_its_teacher(models):
    _, student = models
    student.teacher_file = "is not there"
    output, _ = student.encode(batch()["speech"], batch()["speech_lengths"])
    assert output.shape[0] == 2
