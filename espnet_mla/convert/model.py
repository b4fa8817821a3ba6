"""convert(): the model of an experiment with other attentions, and a record of what each layer kept."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet_mla.convert import calibration, factors, heads, layers
from espnet_mla.convert.calibration import Calibration
from espnet_mla.convert.layers import Part
from espnet_mla.convert.statistics import Gathering, Seen
from espnet_mla.convert.wanted import Wanted
from espnet_mla.measure.caches import cache_of
from espnet_mla.pretrained import with_files
from espnet_mla.recipe.options import UsageError
from espnet_mla.recipe.report import log
from espnet_mla.trained import Source, build


@dataclass(frozen=True)
class Converted:
    """What `convert` gives.

    Args:
        model: ESPnet's, with the new attentions.
        config: its configuration, with the paths of the source's.
        record: of the conversion, in JSON's types.
    """

    model: nn.Module
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


def convert(source: Source, wanted: Wanted) -> Converted:
    """Convert a trained model.

    Raises:
        RecipeError: it can't be converted so, or the calibration speech is no good.
    """
    model, args = source.load()
    parts = layers.parts(model, wanted.modules, source.config)
    _check_sizes(wanted, parts)
    speech = None
    if wanted.calibration:
        decodes = any(part.conf == "decoder_conf" for part in parts)
        speech = calibration.prepare(wanted.calibration, wanted.utterances, args, decodes)
    else:
        log(f"Without --calibration: method {wanted.method}, which looks at the weights alone")

    attentions = {name: attention for found in parts.values() for name, attention in found.items()}
    seen = _look(model, args, attentions, speech) if speech else dict.fromkeys(attentions)
    state = model.state_dict()
    config, records = source.config, []
    for part, found in parts.items():
        sizes, new = (_to_mla if wanted.attention == "mla" else _to_gqa)(wanted, found, seen)
        for name, (parameters, energy_kept) in new.items():
            for key in [key for key in state if key.startswith(f"{name}.")]:
                del state[key]
            state |= {f"{name}.{key}": value for key, value in parameters.items()}
            records.append({"name": name, "part": part.name, "energy_kept": energy_kept})
        option = "kv_lora_rank" if wanted.attention == "mla" else "num_kv_heads"
        config = _with_attention(config, part, wanted.attention, {option: _shortest(sizes)})
    converted, _ = build(with_files(config, source.root))
    converted.load_state_dict(state)
    converted.eval()

    modules = dict(converted.named_modules())
    for record in records:
        old, new = attentions[record["name"]], modules[record["name"]]
        x = torch.zeros(1, 1, new.d_model)
        record["size"] = new.kv_lora_rank if wanted.attention == "mla" else new.num_kv_heads
        record["bytes_before"], record["bytes_after"] = (cache_of(one, x).nbytes_per_frame for one in (old, new))
        record["frames_seen"] = seen[record["name"]].frames if speech else 0
    pairs = {name: (old, modules[name]) for name, old in attentions.items()}
    errors = _compare(model, args, pairs, speech) if speech else dict.fromkeys(pairs)
    for record in records:
        record["relative_error"] = errors[record["name"]]
    record = {
        "attention": wanted.attention,
        "method": wanted.method,
        "calibration": _summary(speech),
        "layers": records,
    }
    return Converted(converted, config, record)


def _check_sizes(wanted: Wanted, parts: dict[Part, dict[str, nn.Module]]) -> None:
    if wanted.sizes is None:
        return
    option = "kv_lora_rank" if wanted.attention == "mla" else "num_kv_heads"
    for part, found in parts.items():
        if len(wanted.sizes) not in (1, len(found)):
            raise UsageError(
                f"--{option}: {len(wanted.sizes)} numbers are given, but the {part.name} has {len(found)} layers"
            )
        attention = next(iter(found.values()))
        d_model, num_heads = attention.linear_out.out_features, layers.heads_of(attention)
        for size in wanted.sizes:
            if wanted.attention == "mla" and size > d_model:
                raise UsageError(
                    f"--kv_lora_rank {size} is more than output_size ({d_model}): at that rank the conversion is exact already"
                )
            if wanted.attention == "gqa" and num_heads % size:
                raise UsageError(f"--num_kv_heads {size} must divide attention_heads ({num_heads})")


def _look(model: nn.Module, args, attentions: dict[str, nn.Module], speech: Calibration) -> dict[str, Seen]:
    """What each attention sees of the speech, in one pass."""
    gatherings = {name: Gathering(attention) for name, attention in attentions.items()}

    def gather(name: str):
        def hook(_attention: nn.Module, inputs: tuple) -> None:
            query, key, _value, *position, mask = inputs
            gatherings[name].add(query, key, position[0] if position else None, mask)

        return hook

    handles = [attention.register_forward_pre_hook(gather(name)) for name, attention in attentions.items()]
    try:
        speech.run(model, args, "calibration")
    finally:
        for handle in handles:
            handle.remove()
    left_out = f"; {speech.left_out} too short" if speech.left_out else ""
    heard = len(speech.entries) - speech.left_out
    log(f"Calibration: {heard} utterances of {speech.path}, {speech.seconds / 60:.1f} minutes{left_out}")
    return {name: gathering.seen() for name, gathering in gatherings.items()}


def _to_mla(
    wanted: Wanted, attentions: dict[str, nn.Module], seen: dict[str, Seen | None]
) -> tuple[list[int], dict[str, tuple[dict[str, Tensor], float]]]:
    method = factors.METHODS[wanted.method]
    found = {name: method(layers.weights_of(attention), seen[name]) for name, attention in attentions.items()}
    ranks = _every(wanted.sizes, len(found))
    if wanted.kv_budget is not None:
        spectra = [one.spectrum for one in found.values()]
        total = round(wanted.kv_budget * 2 * sum(map(len, spectra)))
        try:
            ranks = factors.allocate(spectra, total)
        except ValueError as error:
            raise UsageError(f"--kv_budget {wanted.kv_budget}: {error}") from None
    new = {}
    for (name, one), rank in zip(found.items(), ranks, strict=True):
        made = one.factors(rank)
        log(f"{name}: rank {rank} of {len(one.spectrum)}, energy kept {made.kept:.4f}")
        new[name] = layers.as_mla(attentions[name], made), made.kept
    return ranks, new


def _to_gqa(
    wanted: Wanted, attentions: dict[str, nn.Module], seen: dict[str, Seen | None]
) -> tuple[list[int], dict[str, tuple[dict[str, Tensor], float]]]:
    groups, new = _every(wanted.sizes, len(attentions)), {}
    for (name, attention), kv_heads in zip(attentions.items(), groups, strict=True):
        made = heads.METHODS[wanted.method](layers.weights_of(attention), seen[name], kv_heads)
        log(f"{name}: {kv_heads} of {layers.heads_of(attention)} kv heads, energy kept {made.kept:.4f}")
        new[name] = layers.as_gqa(attention, made), made.kept
    return groups, new


def _every(sizes: list[int] | None, number: int) -> list[int]:
    return [] if sizes is None else sizes * number if len(sizes) == 1 else sizes


def _shortest(sizes: list[int]) -> int | list[int]:
    return sizes[0] if len(set(sizes)) == 1 else sizes


def _with_attention(config: dict, part: Part, kind: str, options: dict) -> dict:
    """A configuration in which a part has another attention."""
    conf = {key: value for key, value in (config.get(part.conf) or {}).items() if key not in _ESPNET_ONLY}
    return {**config, part.conf: {**conf, part.kind: kind, part.options: options}}


_ESPNET_ONLY = ("zero_triu", "use_sdpa", "use_flash_attn", "qk_norm")
"""Options of ESPnet's own attention: what they choose between gives the same output, or was refused."""


def _compare(
    model: nn.Module, args, pairs: dict[str, tuple[nn.Module, nn.Module]], speech: Calibration
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


def _summary(speech: Calibration | None) -> dict | None:
    if speech is None:
        return None
    return {
        "wav_scp": str(speech.path),
        "utterances": len(speech.entries) - speech.left_out,
        "too_short": speech.left_out,
        "seconds": round(speech.seconds, 2),
    }
