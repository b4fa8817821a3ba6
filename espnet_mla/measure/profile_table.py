"""One model's figures as a table to read."""

from collections.abc import Mapping

from espnet_mla.common.units import duration

WIDTH = 26  # of the names


def table(figures: Mapping) -> str:
    """A line for each figure, lengths of speech side by side, and what it was all measured with."""
    model, conditions = figures["model"], figures["measured_with"]
    lines = [f"{model['name']}: {model['encoder']}, {model['file']}"]

    def row(name: str, *cells: object) -> None:
        lines.append(f"{name:<{WIDTH}}{''.join(f'{cell!s:>20}' for cell in cells)}".rstrip())

    row("parameters", *figures["parameters"])
    row("", *(f"{count / 1e6:.2f} M" for count in figures["parameters"].values()))
    row("kept, in bytes", "for a frame", "for a token", "for a second", "for a stream")
    for part, kept in figures["kv_cache"].items():
        name = f"  {part.replace('_', ' ')}, {kept['attention']}"
        each = (kept.get(f"bytes_per_{unit}", "") for unit in ("frame", "token", "second"))
        row(name, *each, f"{kept['fixed_bytes']} (state)" if kept["fixed_bytes"] else "")
    lengths = list(figures["encoder"])
    row("speech", *(f"{length} s" for length in lengths))
    cache, times, memory = figures["cache"], figures["encoder"], figures.get("peak_memory") or {}
    row(
        "  caches",
        *(_megabytes(cache[length]["bytes"]) if "bytes" in cache[length] else "unknown" for length in lengths),
    )
    row("  streams in a gigabyte", *(cache[length].get("per_gigabyte", "") for length in lengths))
    for part, name in (("features", "  peak memory, features"), ("encoder", "  peak memory, encoder")):
        row(name, *(_megabytes(memory[length][part]) if memory else "missing" for length in lengths))
    row("  encoder, seconds", *(_spread(times[length]) for length in lengths))
    row("  real-time factor", *(f"{times[length]['real_time_factor']:.4f}" for length in lengths))
    if decoding := figures.get("decoding"):
        options = ", ".join(f"{name} {value}" for name, value in decoding["options"].items())
        lines.append(
            f"decoding: {decoding['utterances']} utterances, {decoding['audio_seconds']:.1f} s, in "
            f"{_spread(decoding)} s, real-time factor {decoding['real_time_factor']:.3f} ({options})"
        )
    else:
        lines.append("decoding: missing, --wav_scp names no speech")
    if streaming := figures.get("streaming"):
        left = "all" if streaming["left_chunks"] < 0 else streaming["left_chunks"]
        lines.append(
            f"stream: chunks of {streaming['chunk_size']} frames, {left} before them: latency {streaming['latency_ms']:g} ms "
            f"({streaming['chunk_ms']:g} ms, and {streaming['look_ahead_ms']:g} ms ahead); a chunk in "
            f"{_spread(streaming['chunk'])} s, real-time factor {streaming['chunk']['real_time_factor']:.4f}"
        )
        lines.append(
            f"  keeps {streaming['bytes']} bytes after {streaming['after_seconds']:g} s (attentions "
            f"{streaming['attention_bytes']}, convolutions {streaming['convolution_bytes']}, features "
            f"{streaming['features_bytes']}): {streaming['per_gigabyte']} streams in a gigabyte"
        )
    if training := figures["training"]:
        on = f" on {training['running_on']}" if training["running_on"] else ""
        lines.append(f"training: {training['epochs']} epochs in {duration(training['seconds'])}{on}")
    else:
        lines.append("training: missing, no train.log tells of it")
    for decoded, sets in figures["scores"].items():
        for name, of_set in sets.items():
            rates = ", ".join(f"{kind.upper()} {of_set[kind]['rate']} %" for kind in ("wer", "cer") if kind in of_set)
            lines.append(f"{decoded}, {name}: {rates}")
    if not figures["scores"]:
        lines.append("WER, CER: missing, nothing was scored (stages 12 and 13)")
    lines.append(
        f"measured on {conditions['device'] if conditions['device'] != 'cpu' else conditions['machine']}, "
        f"{conditions['threads']} threads, {conditions['dtype']}, with {conditions['speech']}; medians (least to most)"
    )
    return "\n".join(lines)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _spread(timed: Mapping) -> str:
    return f"{timed['seconds']:.3f} ({timed['least']:.3f}-{timed['most']:.3f})"
