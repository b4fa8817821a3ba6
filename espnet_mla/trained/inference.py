"""--chunk_size and --left_chunks for ESPnet's decoding programs, which have no such options."""

import argparse
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

PROGRAMS = re.compile(r"espnet2\.bin\.(asr|st|slu|s2t)_inference")
"""ESPnet's programs that get them."""

HEARD = re.compile(r"Heard (in chunks of .*|as a whole)$", re.MULTILINE)
"""What a log of decoding says of a streaming model."""


def take_options(arguments: Sequence[str]) -> list[str]:
    """Take the two options out of a decoding program's arguments, and have the model that it builds decode by them.

    A streaming model decodes by its configuration's chunks without them. Either way the log says how it hears.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--chunk_size", "--left_chunks"):
        parser.add_argument(name, type=int)
    options, rest = parser.parse_known_args(arguments)

    from espnet2.tasks.abs_task import AbsTask

    build = AbsTask.build_model_from_file.__func__

    def build_model_from_file(cls, *given, **named):
        model, args = build(cls, *given, **named)
        if hasattr(model, "encoder"):  # and is no language model
            _hear(model, args, options.chunk_size, options.left_chunks)
        return model, args

    AbsTask.build_model_from_file = classmethod(build_model_from_file)
    return rest


def _hear(model: "nn.Module", args: argparse.Namespace, chunk_size: int | None, left_chunks: int | None) -> None:
    from espnet_mla.attention import ALL
    from espnet_mla.models.latency import latency
    from espnet_mla.models.streaming import StreamingEncoder
    from espnet_mla.trained.model import sampling_rate

    encoder = model.encoder
    asked = chunk_size is not None or left_chunks is not None
    if not isinstance(encoder, StreamingEncoder):
        if asked:
            raise ValueError(f"--chunk_size, --left_chunks: encoder: {args.encoder} does not hear in chunks")
        return
    if encoder.streaming is None and not asked:
        return
    chunks = encoder.set_chunks(chunk_size, left_chunks)
    if chunks.size == ALL:
        logging.info("Heard as a whole")
        return
    how = f"in chunks of {chunks.size} frames, {'all' if chunks.left == ALL else chunks.left} before them"
    try:
        takes = latency(model, sampling_rate(vars(args)), chunks)
        how += f": latency {takes.milliseconds:g} ms ({takes.chunk:g} ms, and {takes.look_ahead:g} ms ahead)"
    except ValueError as error:
        how += f": latency unknown ({error})"
    logging.info(f"Heard {how}")
