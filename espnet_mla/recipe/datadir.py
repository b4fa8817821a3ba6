"""Kaldi data folders: wav.scp, text, utt2spk and their companions, read, checked, filtered, combined and written."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import read_table, write_table

logger = logging.getLogger(__name__)

REQUIRED = ("wav.scp", "text", "utt2spk")
OF_UTTERANCES = (*REQUIRED, "utt2uniq", "utt2lang", "utt2num_samples")
OF_SPEAKERS = ("spk2gender",)
MOST_BROKEN = 0.01  # of a set's utterances; with more, the set is no longer the one it is named after

# The tables of one folder by file name. spk2utt is not among them: it is made from utt2spk whenever they are written.
Tables = dict[str, dict[str, str]]


def load(folder: Path) -> Tables:
    """Read the tables of a data folder.

    Raises:
        UserError: wav.scp, text or utt2spk is missing, or they do not hold the same utterances.
    """
    names = [name for name in OF_UTTERANCES + OF_SPEAKERS if name in REQUIRED or (folder / name).exists()]
    tables = {name: read_table(folder / name) for name in names}
    tables["text"] = with_plain_blanks(tables["text"], str(folder / "text"))
    for name in REQUIRED:
        for other in REQUIRED:
            lacking = sorted(tables[other].keys() - tables[name].keys())
            if lacking:
                raise UserError(f"{folder / name} lacks {first_few(lacking)}, which {folder / other} has")
    if not tables["utt2spk"]:
        raise UserError(f"{folder / 'utt2spk'} is empty")
    return tables


def with_plain_blanks(text: Mapping[str, str], where: str) -> dict[str, str]:
    """Transcripts whose words are parted by one space each; how many were otherwise is logged.

    Kaldi's validate_data_dir.sh refuses Unicode's blanks, and for ESPnet's character tokenizer each blank of a run is a
    token.
    """
    plain = {utterance: " ".join(words.split()) for utterance, words in text.items()}
    if changed := [utterance for utterance in text if plain[utterance] != text[utterance]]:
        logger.warning(
            "%s: %d of %d transcripts had runs of blanks, or blanks other than the space; now each is one space: %s",
            where, len(changed), len(text), first_few(changed),
        )  # fmt: skip
    return plain


def keep(tables: Tables, utterances: Collection[str]) -> Tables:
    """The same tables with nothing but these utterances and their speakers."""
    utterances = set(utterances)
    speakers = {speaker for utterance, speaker in tables["utt2spk"].items() if utterance in utterances}
    return {
        name: {key: value for key, value in table.items() if key in (speakers if name in OF_SPEAKERS else utterances)}
        for name, table in tables.items()
    }


def save(folder: Path, tables: Tables) -> None:
    """Write the tables and spk2utt; a table that an earlier run left and that is not among them is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in OF_UTTERANCES + OF_SPEAKERS:
        if name in tables:
            write_table(folder / name, tables[name])
        else:
            (folder / name).unlink(missing_ok=True)
    spk2utt: dict[str, list[str]] = {}
    for utterance, speaker in tables["utt2spk"].items():
        spk2utt.setdefault(speaker, []).append(utterance)
    write_table(folder / "spk2utt", {key: " ".join(sorted(value, key=str.encode)) for key, value in spk2utt.items()})


def combine(target: Path, sources: Sequence[Path]) -> None:
    """Write the union of several data folders: the tables that all of them have, and utt2uniq where one has it.

    Raises:
        UserError: a source cannot be read, or two hold the same utterance, or a speaker of another gender.
    """
    loaded = [load(source) for source in sources]
    if any("utt2uniq" in tables for tables in loaded):
        for tables in loaded:
            tables.setdefault("utt2uniq", {utterance: utterance for utterance in tables["utt2spk"]})
    combined: Tables = {name: {} for name in loaded[0] if all(name in tables for tables in loaded)}
    for source, tables in zip(sources, loaded, strict=True):
        for name, table in combined.items():
            for key, value in tables[name].items():
                if key in table and (name not in OF_SPEAKERS or table[key] != value):
                    raise UserError(f"{source / name}: {key} is also in another folder that goes into {target}")
                table[key] = value
    save(target, combined)


def leave_out_broken(where: str, broken: Mapping[str, str], total: int) -> None:
    """Name the utterances that cannot be used, each with its reason, and their number.

    Raises:
        UserError: they are more than `MOST_BROKEN` of all.
    """
    if not broken:
        return
    for utterance, reason in sorted(broken.items()):
        logger.warning("%s: %s is left out: %s", where, utterance, reason)
    counted = f"{where}: {len(broken)} of {total} utterances are broken"
    if len(broken) > MOST_BROKEN * total:
        raise UserError(
            f"{counted}, more than {MOST_BROKEN:.0%}; mend or remove them: "
            + first_few([f"{utterance} ({reason})" for utterance, reason in sorted(broken.items())])
        )
    logger.warning("%s and left out", counted)


def first_few(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, and how many more there are, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
