"""The errors of every utterance, read off the folders that stage 13 writes."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from espnet_mla.common import sclite
from espnet_mla.common.errors import UserError
from espnet_mla.trained.describe import KINDS, Figure, section

_MODEL = re.compile(r"_asr_model_([^/]+)$")


def figures(asr_exp: Path, model_file: Path) -> dict[str, dict[str, dict]]:
    """The scores of each set that the model was decoded on.

    Args:
        asr_exp: the folder of an experiment.
        model_file: decodings whose folder names another one (`..._asr_model_<file>`) are left out.

    Returns:
        Name of the decoding, without the model's -> set -> `utterances`, their names, and under `wer` and `cer` the
        errors and words (or characters) of each, and their rate in per cent. Empty where nothing was scored.
    """
    decodings: dict[str, dict[str, dict]] = {}
    references = (path for depth in ("*/*", "*/org/*") for path in asr_exp.glob(f"{depth}/score_*/ref.trn"))
    for reference in sorted(references):
        kind, folder = reference.parent.name.removeprefix("score_"), reference.parent.parent.relative_to(asr_exp)
        named = _MODEL.search(folder.parts[0])
        if kind not in KINDS or (named and named[1] != model_file.stem):
            continue
        counts = _counts(reference)
        errors, words = (list(column) for column in zip(*counts.values(), strict=True))
        score = {"rate": round(100 * sum(errors) / sum(words), 2), "errors": errors, "words": words}
        scores = decodings.setdefault(_MODEL.sub("", folder.parts[0]), {}).setdefault("/".join(folder.parts[1:]), {})
        scores["utterances"] = list(counts)
        scores[kind] = score
    return decodings


def utterance_counts(content: Mapping, rate: Figure) -> tuple[np.ndarray, np.ndarray]:
    """Errors and words (or characters) of each utterance that an error rate is made of, (utterances,).

    Args:
        content: of figures.json.
        rate: the figure.

    Raises:
        ValueError: they are missing, or are no counts.
    """
    kind, _, test_set = rate.key.partition(".")
    scores = section(content, "scores", str(rate.decoding), test_set)
    utterances, counts = scores.get("utterances") or [], section(scores, kind)
    errors, words = (np.array(counts.get(name) or []) for name in ("errors", "words"))
    if any(array.dtype.kind != "i" or array.shape != (len(utterances),) for array in (errors, words)):
        raise ValueError(f"scores lacks the errors and words of each utterance of {test_set}")
    if not words.sum():
        raise ValueError(f"scores has no word for {test_set}")
    return errors, words


def _counts(reference: Path) -> dict[str, tuple[int, int]]:
    """Utterance -> errors and words, aligned as sclite does it.

    Raises:
        UserError: there is no word, or the hypotheses are missing.
    """
    references, hypotheses = _read(reference), _read(reference.with_name("hyp.trn"))
    counts = {}
    for utterance in sorted(references):
        count = sclite.count(sclite.align(references[utterance], hypotheses.get(utterance, "")))
        counts[utterance] = (count.errors, count.words)
    if not sum(words for _, words in counts.values()):
        raise UserError(f"{reference} has no word: score again (stage 13)")
    return counts


def _read(path: Path) -> dict[str, str]:
    """A file of lines with a text, a tab, and (speaker-utterance): sclite's trn, as ESPnet writes it."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: score again (stage 13)")
    table = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        text, tab, name = line.rpartition("\t")
        if tab and name[:1] == "(" and name[-1:] == ")":
            table[name[1:-1]] = text.strip()
        elif line:
            raise UserError(f"{path}, line {number}: not a text, a tab and (speaker-utterance): score again (stage 13)")
    return table
