"""convert(): the model of an experiment with other attentions, and a record of each layer's energy and error."""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor, nn

from espnet_mla.attention import attention_context
from espnet_mla.common.errors import UsageError
from espnet_mla.common.log import log
from espnet_mla.convert import calibration, factors, heads, layers
from espnet_mla.convert.calibration import Calibration, CalibrationSummary
from espnet_mla.convert.layers import Part, SourceAttention
from espnet_mla.convert.spec import OPTION, ConversionSpec
from espnet_mla.convert.statistics import CalibrationStatistics, StatisticsAccumulator
from espnet_mla.models.caches import cache_of
from espnet_mla.models.chunked import MaskedChunks
from espnet_mla.trained.locate import with_files
from espnet_mla.trained.model import Source, build


@dataclass(frozen=True)
class Converted:
    """What `convert` gives.

    Args:
        model: with the new attentions.
        config: its configuration, with the paths of the source's.
        record: of the conversion, in JSON's types.
    """

    model: ESPnetASRModel
    config: dict
    record: dict

    def table(self) -> str:
        """A line for each layer, in Markdown."""
        size = "rank" if self.record["attention"] == "mla" else "kv heads"
        lines = [
            f"| layer | {size} | bytes a frame before | after | energy kept | relative error of the output |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for layer in self.record["layers"]:
            error = layer["relative_error"]
            lines.append(
                f"| {layer['name']} | {layer['size']} | {layer['bytes_before']:,} | {layer['bytes_after']:,} "
                f"| {layer['energy_kept']:.4f} | {'not measured' if error is None else f'{error:.4f}'} |"
            )
        before, after = (sum(layer[f"bytes_{when}"] for layer in self.record["layers"]) for when in ("before", "after"))
        lines.append(f"| all | | {before:,} | {after:,} ({after / before:.2%}) | | |")
        return "\n".join(lines)


def convert(source: Source, spec: ConversionSpec, device: str = "cpu") -> Converted:
    """Convert a trained model.

    Args:
        source: the model.
        spec: what it becomes.
        device: that runs it over the calibration speech, in float64 where it matters; all else is the CPU's.

    Raises:
        UserError: it can't be converted so, or the calibration speech is no good.
    """
    model, args = source.load()
    parts = layers.parts(model, spec.modules, source.config)
    for part in parts:
        _check_sizes(spec, part)
    speech = None
    if spec.calibration:
        with_text = any(part.conf == "decoder_conf" for part in parts)
        speech = calibration.prepare(spec.calibration, spec.utterances, args, with_text)
    else:
        log(f"Without --calibration: method {spec.method}, which looks at the weights alone")

    old = {name: attention for part in parts for name, attention in part.attentions.items()}
    statistics: dict[str, CalibrationStatistics | None] = dict.fromkeys(old)
    calibrated = None
    if speech:
        model.to(device)
        collected, summary = _collect_statistics(model, args, old, speech)
        model.cpu()
        statistics.update(collected)
        calibrated = {"wav_scp": str(speech.path), **summary._asdict()}
    config, state, energy = source.config, model.state_dict(), {}
    for part in parts:
        made = (_to_mla if spec.attention == "mla" else _to_gqa)(spec, part, statistics)
        for name, layer in made.items():
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
            state |= {f"{name}.{key}": value for key, value in layer.parameters.items()}
            energy[name] = layer.energy
        sizes = [layer.size for layer in made.values()]
        size = sizes[0] if len(set(sizes)) == 1 else sizes
        config = part.changed(config, spec.attention, {OPTION[spec.attention]: size})
    converted, _ = build(with_files(config, source.root), "the converted configuration")
    converted.load_state_dict(state)
    modules = dict(converted.eval().named_modules())
    pairs = {name: (attention, modules[name]) for name, attention in old.items()}
    errors: dict[str, float | None] = dict.fromkeys(pairs)
    if speech:
        for one in (model, converted):
            one.to(device)
        errors.update(_compare(model, args, pairs, speech))
        for one in (model, converted):
            one.cpu()
    records = [
        {
            "name": name,
            "part": part.name,
            "size": getattr(modules[name], OPTION[spec.attention]),
            "bytes_before": _bytes_per_frame(old[name]),
            "bytes_after": _bytes_per_frame(modules[name]),
            "energy_kept": energy[name],
            "relative_error": errors[name],
        }
        for part in parts
        for name in part.attentions
    ]
    record = {"attention": spec.attention, "method": spec.method, "calibration": calibrated, "layers": records}
    return Converted(converted, config, record)


def _check_sizes(spec: ConversionSpec, part: Part) -> None:
    attention, number = next(iter(part.attentions.values())), len(part.attentions)
    d_model, num_heads = attention.linear_out.out_features, layers.heads_of(attention)
    if spec.sizes is None:
        total = _total_rank(spec, part)
        if total < number:
            raise UsageError(
                f"--kv_budget {spec.kv_budget} keeps {total} numbers for the {number} layers of the {part.name}: "
                "at least one for each is needed"
            )
        return
    if len(spec.sizes) not in (1, number):
        given = f"--{OPTION[spec.attention]}: {len(spec.sizes)} numbers are given"
        raise UsageError(f"{given}, but the {part.name} has {number} layers")
    for size in spec.sizes:
        if spec.attention == "mla" and size > d_model:
            raise UsageError(
                f"--kv_lora_rank {size} is more than output_size ({d_model}), which is as many numbers as a frame has"
            )
        if spec.attention == "gqa" and num_heads % size:
            raise UsageError(f"--num_kv_heads {size} must divide attention_heads ({num_heads})")


def _collect_statistics(
    model: ESPnetASRModel, args: Namespace, attentions: dict[str, SourceAttention], speech: Calibration
) -> tuple[dict[str, CalibrationStatistics], CalibrationSummary]:
    """The calibration statistics of each attention, in one pass."""
    accumulators = {name: StatisticsAccumulator(attention) for name, attention in attentions.items()}

    def accumulate(name: str):
        def hook(_attention: nn.Module, inputs: tuple) -> None:
            query, key, _value, *position, mask = inputs
            if isinstance(context := attention_context(), MaskedChunks):
                mask = context.chunks.mask(query, mask)
            accumulators[name].add(query, key, position[0] if position else None, mask)

        return hook

    handles = [attention.register_forward_pre_hook(accumulate(name)) for name, attention in attentions.items()]
    try:
        summary = speech.run(model, args, "calibration")
    finally:
        for handle in handles:
            handle.remove()
    left_out = f"; {summary.too_short} too short" if summary.too_short else ""
    log(f"Calibration: {summary.utterances} utterances of {speech.path}, {summary.seconds / 60:.1f} minutes{left_out}")
    return {name: accumulator.statistics() for name, accumulator in accumulators.items()}, summary


class Layer(NamedTuple):
    """What one layer becomes: its kv_lora_rank or num_kv_heads, its parameters, and the share of energy kept."""

    size: int
    parameters: dict[str, Tensor]
    energy: float


def _to_mla(spec: ConversionSpec, part: Part, statistics: dict[str, CalibrationStatistics | None]) -> dict[str, Layer]:
    method = factors.METHODS[spec.method]
    methods = {
        name: method(layers.weights_of(attention), statistics[name]) for name, attention in part.attentions.items()
    }
    if spec.sizes is None:
        ranks = factors.allocate([one.spectrum for one in methods.values()], _total_rank(spec, part))
    else:
        ranks = _of_each(spec.sizes, part)
    new = {}
    for (name, one), rank in zip(methods.items(), ranks, strict=True):
        made = one.factors(rank)
        log(f"{name}: rank {rank} of {len(one.spectrum)}, energy kept {made.energy:.4f}")
        new[name] = Layer(rank, layers.as_mla(part.attentions[name], made), made.energy)
    return new


def _to_gqa(spec: ConversionSpec, part: Part, statistics: dict[str, CalibrationStatistics | None]) -> dict[str, Layer]:
    method, new = heads.METHODS[spec.method], {}
    for (name, attention), kv_heads in zip(part.attentions.items(), _of_each(spec.sizes or [1], part), strict=True):
        made = method(layers.weights_of(attention), statistics[name], kv_heads)
        log(f"{name}: {kv_heads} of {layers.heads_of(attention)} kv heads, energy kept {made.energy:.4f}")
        new[name] = Layer(kv_heads, layers.as_gqa(attention, made), made.energy)
    return new


def _of_each(sizes: list[int], part: Part) -> list[int]:
    return sizes * len(part.attentions) if len(sizes) == 1 else sizes


def _total_rank(spec: ConversionSpec, part: Part) -> int:
    """How many numbers a frame --kv_budget leaves for all layers of a part together."""
    assert spec.kv_budget is not None  # where `sizes` is None
    return round(spec.kv_budget * sum(2 * attention.linear_out.out_features for attention in part.attentions.values()))


def _bytes_per_frame(attention: Any) -> int:
    return cache_of(attention, torch.zeros(1, 1, attention.linear_out.out_features)).nbytes_per_frame


def _compare(
    model: ESPnetASRModel, args: Namespace, pairs: dict[str, tuple[nn.Module, nn.Module]], speech: Calibration
) -> dict[str, float]:
    """The relative error of each new attention's output, given what the old one is given: ||new - old|| / ||old||."""
    sums = {name: [0.0, 0.0] for name in pairs}

    def compare(name: str, new: nn.Module):
        def hook(_attention: nn.Module, inputs: tuple, output: Tensor) -> None:
            sums[name][0] += (new(*inputs) - output).double().square().sum().item()
            sums[name][1] += output.double().square().sum().item()

        return hook

    handles = [old.register_forward_hook(compare(name, new)) for name, (old, new) in pairs.items()]
    try:
        speech.run(model, args, "comparison")
    finally:
        for handle in handles:
            handle.remove()
    return {name: (error / whole) ** 0.5 if whole else 0.0 for name, (error, whole) in sums.items()}
