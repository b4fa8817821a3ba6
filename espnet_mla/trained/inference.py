"""What ESPnet's decoding programs get besides: strict loading, and options for chunks and caches."""

import argparse
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from espnet_mla.common.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

PROGRAMS = re.compile(r"espnet2\.bin\.(asr|st|slu|s2t)_inference")
"""ESPnet's programs that get them."""

CHUNKS = ("chunk_size", "left_chunks", "look_ahead")
"""Options of a streaming encoder, see `StreamingEncoder.set_chunks`."""

CONTEXT = re.compile(r"(?:Inference: |Heard (?:in )?)(chunks of .*|full context|as a whole)$", re.MULTILINE)
"""What a log of decoding says of a streaming model; logs of version 0.1.0 say "Heard"."""


def take_options(arguments: Sequence[str]) -> list[str]:
    """Take these options out of a decoding program's arguments, and apply them to the model that it builds.

    Without them a streaming model decodes in its configuration's chunks, with caches as they are computed. Either way
    the log names the chunks. The model's parameters must fit its configuration.
    """
    options, rest = own_options(arguments)

    from espnet2.tasks.abs_task import AbsTask

    from espnet_mla.models import caches
    from espnet_mla.trained import loading, tasks

    def build_model_from_file(cls: type[AbsTask], *paths: Any, **named: Any) -> "tuple[nn.Module, argparse.Namespace]":
        model, args = loading.build_model_from_file(cls, *paths, **named)
        hearing = getattr(model, "s2t_model", model)  # behind enhancement
        if hasattr(hearing, "encoder"):  # and is no language model
            tasks.check_g2p(vars(args), paths[0] if paths else "the model")
            _set_chunks(hearing, args, {name: getattr(options, name) for name in CHUNKS})
            if options.cache_dtype:
                caches.set_cache_dtype(hearing, options.cache_dtype)
                logging.info(f"Caches: {options.cache_dtype}")
        return model, args

    AbsTask.build_model_from_file = classmethod(build_model_from_file)
    return rest


def own_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Those of `CHUNKS`, and cache_dtype, None where they are not given, and the other arguments.

    Raises:
        UsageError: one has a value that it can't have.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in CHUNKS:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--cache_dtype")
    try:
        options, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None
    if options.cache_dtype is not None:
        from espnet_mla.attention.cache_types import check_cache_type

        try:
            check_cache_type(options.cache_dtype)
        except ValueError as error:
            raise UsageError(f"--{error}") from None
    return options, rest


def _set_chunks(model: "nn.Module", args: argparse.Namespace, given: dict[str, int | None]) -> None:
    from espnet_mla.attention import ALL
    from espnet_mla.models.latency import latency
    from espnet_mla.models.streaming import StreamingEncoder
    from espnet_mla.trained.model import sampling_rate

    encoder = model.encoder
    asked = [f"--{name}" for name, value in given.items() if value is not None]
    if not isinstance(encoder, StreamingEncoder):
        if asked:
            raise UsageError(f"{', '.join(asked)}: encoder: {args.encoder} is no chunked encoder")
        return
    if encoder.streaming is None and not asked:
        return
    try:
        chunks = encoder.set_chunks(**given)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if chunks.size == ALL:
        logging.info("Inference: full context")
        return
    described = f"chunks of {chunks.size} frames, {'all' if chunks.left == ALL else chunks.left} left chunks"
    described += f", {chunks.look_ahead} frames ahead" if chunks.look_ahead else ""
    try:
        algorithmic = latency(model, sampling_rate(vars(args)), chunks)
        described += f": latency {algorithmic.milliseconds:g} ms ({algorithmic.chunk:g} ms chunk, "
        described += f"{algorithmic.look_ahead:g} ms look-ahead)"
    except ValueError as error:
        described += f": latency unknown ({error})"
    logging.info(f"Inference: {described}")
