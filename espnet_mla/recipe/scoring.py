"""Stage 13: WER, CER and TER of decoded sets, in the files and the RESULTS.md that ESPnet's own stage 13 leaves.

Hypotheses and references become tokens with ESPnet's tokenizers; how they are aligned and counted is in `sclite`, which
also says why jiwer can't do it.
"""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from espnet_mla.common import sclite
from espnet_mla.common.errors import UserError
from espnet_mla.common.files import write_text
from espnet_mla.common.tables import read_table
from espnet_mla.recipe.datadir import first_few
from espnet_mla.trained.inference import CONTEXT

KINDS = {"wer": "word", "cer": "char", "ter": "bpe"}
"""Each rate with ESPnet's name of the tokens it counts."""

HEAD = "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|\n|---|---|---|---|---|---|---|---|---|\n"
_SUM = re.compile(r"^\s*\|\s*Sum/Avg\s*\|(.*)\|\s*$", re.MULTILINE)


def score(
    data: str | Path,
    decode_dir: str | Path,
    kinds: Sequence[str] = tuple(KINDS),
    *,
    bpemodel: str | Path | None = None,
    cleaner: str | None = None,
    hyp_cleaner: str | None = None,
    nlsyms_txt: str | Path | None = None,
) -> None:
    """Score `decode_dir`/text against `data`/text; write `decode_dir`/score_{wer,cer,ter}/{ref.trn,hyp.trn,result.txt}.

    An utterance without a hypothesis, or with an empty one, counts as deleted words; a warning and result.txt name it.

    Args:
        data: a folder with text and utt2spk.
        kinds: some of `KINDS`; "ter" is left out where there is no `bpemodel`, as ESPnet does.
        cleaner, hyp_cleaner: of the references and of the hypotheses; None or "none" for none.
        nlsyms_txt: file of symbols that count neither as words nor as characters; None or "none" for none.

    Raises:
        UserError: a file is missing, or the files don't have the same utterances.
    """
    data, decode_dir = Path(data), Path(decode_dir)
    references, speakers = read_table(data / "text"), read_table(data / "utt2spk")
    plain = decode_dir / "text_nospecial"  # without the symbols of language, task and times
    hypotheses = read_table(plain if plain.exists() else decode_dir / "text")
    _refuse(references.keys() ^ speakers.keys(), f"{data / 'text'} and {data / 'utt2spk'} don't agree on")
    _refuse(hypotheses.keys() - references.keys(), f"{decode_dir / 'text'} has hypotheses that {data / 'text'} lacks:")
    if not references:
        raise UserError(f"{data / 'text'} is empty: there is nothing to score")
    missing = [name for name in references if name not in hypotheses]
    empty = [name for name in references if not hypotheses.get(name, "missing")]
    notes = [
        f"{len(names)} utterances {what}, all their words count as deleted: {' '.join(names)}"
        for names, what in ((missing, "have no hypothesis"), (empty, "have an empty hypothesis"))
        if names
    ]
    for note in notes:
        logging.warning("%s: %s", decode_dir / "text", note)

    order = sorted(references, key=str.encode)
    marked: set[str] = set()
    for kind in kinds:
        if kind == "ter" and not (bpemodel and Path(bpemodel).is_file()):
            continue
        tokenizer = _tokenizer(kind, bpemodel, nlsyms_txt)
        trn: dict[str, dict[str, str]] = {}
        for name, texts, clean in (("ref", references, _cleaner(cleaner)), ("hyp", hypotheses, _cleaner(hyp_cleaner))):
            trn[name] = {
                utterance: " ".join(tokenizer.text2tokens(clean(" ".join(texts.get(utterance, "").split()))))
                for utterance in order
            }
        ids = {utterance: f"({speakers[utterance]}-{utterance})" for utterance in order}
        folder = decode_dir / f"score_{kind}"
        for name, lines in trn.items():
            write_text(folder / f"{name}.trn", "".join(f"{_line(lines[key])}\t{ids[key]}\n" for key in order))
            marked |= {key for key in order if sclite.has_markup(lines[key])}
        scored = [sclite.Utterance(ids[key], sclite.align(trn["ref"][key], trn["hyp"][key])) for key in order]
        write_text(folder / "result.txt", sclite.report(scored, str(folder / "hyp.trn"), "\n".join(notes)))
    if marked:
        logging.warning(
            "%s: %d utterances, the first is %s, hold { or @, which are words here; NIST's sclite would read "
            "alternatives or no word", decode_dir, len(marked), min(marked, key=str.encode),
        )  # fmt: skip


def write_results(asr_exp: str | Path, note: str = "") -> Path:
    """Write `asr_exp`/RESULTS.md: the environment, the rates of every decoded set below `asr_exp`, and at what latency.

    Args:
        note: a line above every table, e.g. that the figures come from the mini corpus.
    """
    path = Path(asr_exp) / "RESULTS.md"
    write_text(path, results_markdown(asr_exp, note))
    return path


def results_markdown(asr_exp: str | Path, note: str = "") -> str:
    """The text of RESULTS.md.

    Raises:
        UserError: nothing below `asr_exp` has been scored.
    """
    asr_exp = Path(asr_exp)
    tables: dict[Path, dict[str, list[str]]] = {}
    latencies: dict[Path, dict[str, str]] = {}
    for result in sorted(asr_exp.rglob("score_*/result.txt")):
        kind, decoded = result.parent.name.removeprefix("score_"), result.parent.parent
        if kind not in KINDS:
            continue
        total = _SUM.search(result.read_text(encoding="utf-8"))
        if total is None:
            raise UserError(f"{result} has no Sum/Avg row: remove {result.parent} and score again (stage 13)")
        name = "/".join(decoded.parts[-2:])
        if latency := _latency(decoded):
            latencies.setdefault(decoded.parent.parent, {})[name] = latency
        row = [name, *total[1].replace("|", " ").split()]
        tables.setdefault(decoded.parent.parent, {}).setdefault(kind, []).append(f"|{'|'.join(row)}|\n")
    if not tables:
        raise UserError(f"{asr_exp} holds no score_*/result.txt: decode (stage 12) and score (stage 13) first")
    parts = ["<!-- Generated by espnet_mla.recipe.scoring -->\n# RESULTS\n" + _environment()]
    for experiment, kinds in sorted(tables.items()):
        parts.append(f"## {experiment.as_posix()}\n")
        for kind in KINDS:
            if kind in kinds:
                above = f"{note}\n\n" if note else ""
                parts.append(f"### {kind.upper()}\n\n{above}{HEAD}{''.join(kinds[kind])}\n")
        if rows := latencies.get(experiment):
            lines = "".join(f"|{name}|{latency}|\n" for name, latency in rows.items())
            parts.append(f"### Latency\n\n|dataset|attention context|\n|---|---|\n{lines}\n")
    return "".join(parts)


def _latency(decoded: Path) -> str | None:
    """The chunks and the latency of a streaming model on a set, by the log of its decoding."""
    for path in sorted((decoded / "logdir").glob("*_inference.*.log")):
        if found := CONTEXT.search(path.read_text(encoding="utf-8", errors="replace")):
            return found[1]
    return None


def _refuse(utterances: set[str], problem: str) -> None:
    if utterances:
        raise UserError(f"{problem} {first_few(sorted(utterances), most=10)}")


def _line(text: str) -> str:
    # sclite takes a line that begins with either for a comment, and would leave its utterance out of the count.
    return f" {text}" if text.startswith((";;", "**")) else text


def _none(value: str | Path | None) -> str | None:
    return None if value is None or str(value) in ("none", "") else str(value)


def _cleaner(name: str | None):
    from espnet2.text.cleaner import TextCleaner

    return TextCleaner(_none(name))


def _tokenizer(kind: str, bpemodel: str | Path | None, nlsyms_txt: str | Path | None):
    from espnet2.text.build_tokenizer import build_tokenizer

    if kind not in KINDS:
        raise UserError(f"can't score {kind!r}: choose from {', '.join(KINDS)}")
    if kind == "ter":
        return build_tokenizer("bpe", bpemodel=str(bpemodel))
    symbols = _none(nlsyms_txt)
    if symbols is not None and not Path(symbols).is_file():
        raise UserError(f"{symbols}, the file of non-linguistic symbols, does not exist")
    return build_tokenizer(KINDS[kind], non_linguistic_symbols=symbols, remove_non_linguistic_symbols=True)


def _environment() -> str:
    import espnet2
    import torch

    lines = [
        f"- date: `{time.strftime('%a %b %e %H:%M:%S %Z %Y')}`",
        f"- python version: `{sys.version.replace(chr(10), ' ')}`",
        f"- espnet version: `espnet {espnet2.__version__}`",
        f"- pytorch version: `pytorch {torch.__version__}`",
    ]
    if commit := _git("rev-parse", "HEAD"):
        lines += [f"- Git hash: `{commit}`", f"  - Commit date: `{_git('log', '-1', '--format=%cd')}`"]
    return "## Environments\n" + "\n".join(lines) + "\n\n"


def _git(*arguments: str) -> str:
    """What git says, or nothing where this is no repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
