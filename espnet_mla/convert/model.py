"""convert(): the model of an experiment with other attentions, and a record of each layer's energy and error."""

from argparse import Namespace
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor, nn

from espnet_mla.attention import Cache, attention_context
from espnet_mla.common import units
from espnet_mla.common.errors import UsageError
from espnet_mla.common.log import log
from espnet_mla.convert import calibration, factors, heads, layers, rotary
from espnet_mla.convert.calibration import Calibration, CalibrationSummary
from espnet_mla.convert.layers import Part, SourceAttention
from espnet_mla.convert.spec import OPTION, ConversionSpec
from espnet_mla.convert.statistics import CalibrationStatistics, StatisticsAccumulator
from espnet_mla.models.caches import cache_of
from espnet_mla.models.chunked import MaskedChunks
from espnet_mla.models.encoding import DEFAULT_PROMPT, Prompt
from espnet_mla.models.look_ahead import LookAheadChunks
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

    model: AbsESPnetModel
    config: dict
    record: dict

    def table(self) -> str:
        """A line for each layer, in Markdown."""
        size = {"mla": "rank", "gqa": "kv heads", "mtla": "merged", "linear": "size"}[self.record["attention"]]
        lines = [
            f"| layer | {size} | bytes a frame before | after | energy kept | relative error of the output |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for layer in self.record["layers"]:
            energy, error = (
                unknown if layer[key] is None else f"{layer[key]:.4f}"
                for key, unknown in (("energy_kept", ""), ("relative_error", "not measured"))
            )
            lines.append(
                f"| {layer['name']} | {layer['size'] or ''} | {layer['bytes_before']:,} "
                f"| {units.size(layer['bytes_after'])} | {energy} | {error} |"
            )
        before, after, state = (
            sum(layer[key] for layer in self.record["layers"]) for key in ("bytes_before", "bytes_after", "state_bytes")
        )
        kept = f"{units.size(after)} ({after / before:.2%})" if after else f"0, and {state:,} whatever the length"
        lines.append(f"| all | | {before:,} | {kept} | | |")
        return "\n".join(lines)


def convert(source: Source, spec: ConversionSpec, device: str = "cpu", prompt: Prompt = DEFAULT_PROMPT) -> Converted:
    """Convert a trained model.

    Args:
        source: the model.
        spec: what it becomes.
        device: that runs it over the calibration speech, in float64 where it matters; all else is the CPU's.
        prompt: of the calibration speech, for OWSM.

    Raises:
        UserError: it can't be converted so, or the calibration speech is no good.
    """
    model, args = source.load(audio=spec.calibration is not None)
    parts = layers.parts(model, spec.modules, source.config, spec.attention)
    if spec.qk_rope_head_dim is not None and not any(part.rotary for part in parts):
        raise UsageError(f"--qk_rope_head_dim {spec.qk_rope_head_dim}: this model has no rotary positions (rope)")
    for part in parts:
        _check_sizes(spec, part)
    speech = None
    if spec.calibration:
        with_text = any(part.conf == "decoder_conf" for part in parts)
        speech = calibration.prepare(spec.calibration, spec.utterances, args, with_text, prompt)
    else:
        log(f"Without --calibration: method {spec.method}, which looks at the weights alone")

    old = {name: attention for part in parts for name, attention in part.attentions.items()}
    statistics: dict[str, CalibrationStatistics | None] = dict.fromkeys(old)
    calibrated = None
    if speech:
        model.to(device)
        # Those of an mla model are not needed: its latents stay as they are.
        collected, summary = _collect_statistics(model, args, {} if spec.attention == "mtla" else old, speech)
        model.cpu()
        statistics.update(collected)
        calibrated = {"wav_scp": str(speech.path), **summary._asdict()}
    config, state, energy = source.config, model.state_dict(), {}
    for part in parts:
        made = _WAYS[spec.attention](spec, part, statistics)
        for name, layer in made.items():
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
            state |= {f"{name}.{key}": value for key, value in layer.parameters.items()}
            energy[name] = layer.energy
        config = part.changed(config, spec.attention, _options([layer.options for layer in made.values()]))
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
            "size": getattr(modules[name], OPTION[spec.attention]) if spec.attention in OPTION else None,
            "bytes_before": _bytes_per_frame(old[name]),
            "bytes_after": _bytes_per_frame(modules[name]),
            "state_bytes": _cache(modules[name]).nbytes if spec.attention == "linear" else 0,
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
    d_model = attention.linear_out.out_features
    if spec.attention == "linear":
        return
    if spec.attention == "mtla":
        _check_number(spec, part, number)
        if part.name == "decoder_self" and len(set(spec.sizes or ())) > 1:
            raise UsageError(f"--down_rate {','.join(map(str, spec.sizes or ()))}: a decoder has one for all layers")
        return
    if part.rotary:
        if not spec.calibration:
            raise UsageError("--calibration is needed: which rotary positions count is seen on speech alone")
        if spec.kv_budget:
            raise UsageError(f"--kv_budget {spec.kv_budget}: a model with rope needs --kv_lora_rank")
        size = spec.qk_rope_head_dim
        if size is not None and (size < 2 or size % 2 or size > d_model):
            raise UsageError(f"--qk_rope_head_dim {size}: an even number from 2 to {d_model} is needed")
    if spec.sizes is None:
        total = _total_rank(spec, part)
        if total < number:
            raise UsageError(
                f"--kv_budget {spec.kv_budget} keeps {total} numbers for the {number} layers of the {part.name}: "
                "at least one for each is needed"
            )
        return
    _check_number(spec, part, number)
    num_heads = layers.heads_of(attention)
    for size in spec.sizes:
        if spec.attention == "mla" and size > d_model:
            raise UsageError(
                f"--kv_lora_rank {size} is more than output_size ({d_model}), which is as many numbers as a frame has"
            )
        if spec.attention == "gqa" and num_heads % size:
            raise UsageError(f"--num_kv_heads {size} must divide attention_heads ({num_heads})")


def _check_number(spec: ConversionSpec, part: Part, layers: int) -> None:
    assert spec.sizes is not None
    if len(spec.sizes) not in (1, layers):
        given = f"--{OPTION[spec.attention]}: {len(spec.sizes)} numbers are given"
        raise UsageError(f"{given}, but the {part.name} has {layers} layers")


def _collect_statistics(
    model: AbsESPnetModel, args: Namespace, attentions: dict[str, SourceAttention], speech: Calibration
) -> tuple[dict[str, CalibrationStatistics], CalibrationSummary]:
    """The calibration statistics of each attention, in one pass."""
    accumulators = {name: StatisticsAccumulator(attention) for name, attention in attentions.items()}

    def accumulate(name: str):
        def hook(_attention: nn.Module, inputs: tuple) -> None:
            query, key, _value, *position, mask = inputs
            context = attention_context()
            if isinstance(context, LookAheadChunks):
                for queries, keys, places in context.each(query):
                    accumulators[name].add(queries, keys, places, None)
                return
            if isinstance(context, MaskedChunks):
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
    """What one layer becomes: its options in a configuration, its parameters, and the share of energy kept, if any."""

    options: dict[str, Any]
    parameters: dict[str, Tensor]
    energy: float | None


def _options(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Those of a part that some layer has: one value where all layers have the same, else a list with one for each."""
    values = {name: [options[name] for options in layers] for name in layers[0]}
    return {
        name: of[0] if all(one == of[0] for one in of) and not isinstance(of[0], list) else of
        for name, of in values.items()
        if any(of)
    }


def _to_mla(spec: ConversionSpec, part: Part, statistics: dict[str, CalibrationStatistics | None]) -> dict[str, Layer]:
    method = factors.METHODS[spec.method]
    weights = {name: layers.weights_of(attention) for name, attention in part.attentions.items()}
    shared = {name: _shared_key(spec, part.attentions[name], statistics[name]) for name in weights if part.rotary}
    for name, key in shared.items():
        weights[name] = replace(weights[name], k=key.rest)
        log(f"{name}: rotary key of {len(key.down)}, energy kept {key.energy:.4f}")
    methods = {name: method(weights[name], statistics[name]) for name in weights}
    if spec.sizes is None:
        ranks = factors.allocate([one.spectrum for one in methods.values()], _total_rank(spec, part))
    else:
        ranks = _of_each(spec.sizes, part)
    new = {}
    for (name, one), rank in zip(methods.items(), ranks, strict=True):
        made = one.factors(rank)
        log(f"{name}: rank {rank} of {len(one.spectrum)}, energy kept {made.energy:.4f}")
        options: dict[str, Any] = {"kv_lora_rank": rank}
        if part.rotary:
            options |= {
                "qk_nope_head_dim": weights[name].k.shape[1],
                "qk_rope_head_dim": len(shared[name].down),
                "rope_frequencies": shared[name].frequencies,
            }
            parameters = layers.as_rotary_mla(part.attentions[name], made, shared[name])
        else:
            parameters = layers.as_mla(part.attentions[name], made)
        new[name] = Layer(options, parameters, made.energy)
    return new


def _shared_key(
    spec: ConversionSpec, attention: SourceAttention, statistics: CalibrationStatistics | None
) -> rotary.SharedKey:
    """The shared rotary key of a layer."""
    assert statistics is not None  # as `_check_sizes` has seen
    k = layers.weights_of(attention).k
    size = spec.qk_rope_head_dim or k.shape[1] // 4 * 2
    return rotary.shared_key(k, attention.linear_k.bias.detach().double().view(k.shape[:2]), statistics, size)


def _to_gqa(spec: ConversionSpec, part: Part, statistics: dict[str, CalibrationStatistics | None]) -> dict[str, Layer]:
    method, new = heads.METHODS[spec.method], {}
    for (name, attention), kv_heads in zip(part.attentions.items(), _of_each(spec.sizes or [1], part), strict=True):
        made = method(layers.weights_of(attention), statistics[name], kv_heads)
        log(f"{name}: {kv_heads} of {layers.heads_of(attention)} kv heads, energy kept {made.energy:.4f}")
        new[name] = Layer({"num_kv_heads": kv_heads}, layers.as_gqa(attention, made), made.energy)
    return new


def _to_linear(_: ConversionSpec, part: Part, _statistics: dict[str, CalibrationStatistics | None]) -> dict[str, Layer]:
    return {name: Layer({}, layers.as_linear(attention), None) for name, attention in part.attentions.items()}


def _to_mtla(spec: ConversionSpec, part: Part, _: dict[str, CalibrationStatistics | None]) -> dict[str, Layer]:
    return {
        name: Layer({**layers.options_of(attention), "down_rate": rate}, layers.as_mtla(attention, rate), None)
        for (name, attention), rate in zip(part.attentions.items(), _of_each(spec.sizes or [2], part), strict=True)
    }


_WAYS = {"mla": _to_mla, "gqa": _to_gqa, "mtla": _to_mtla, "linear": _to_linear}


def _of_each(sizes: list[int], part: Part) -> list[int]:
    return sizes * len(part.attentions) if len(sizes) == 1 else sizes


def _total_rank(spec: ConversionSpec, part: Part) -> int:
    """How many numbers a frame --kv_budget leaves for all layers of a part together."""
    assert spec.kv_budget is not None  # where `sizes` is None
    return round(spec.kv_budget * sum(2 * attention.linear_out.out_features for attention in part.attentions.values()))


def _cache(attention: Any) -> Cache:
    """Of one frame."""
    return cache_of(attention, torch.zeros(1, 1, attention.linear_out.out_features))


def _bytes_per_frame(attention: Any) -> float:
    return _cache(attention).nbytes_per_frame


def _compare(
    model: AbsESPnetModel, args: Namespace, pairs: dict[str, tuple[nn.Module, nn.Module]], speech: Calibration
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
