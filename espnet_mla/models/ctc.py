"""ESPnet's CTC prefix scores for beam search (Watanabe et al. 2017, algorithm 2), without its loop over frames.

ESPnet walks the frames for every candidate of every hypothesis. Two things make that unnecessary: the prefix
probability of a candidate is one sum over frames, and only the candidates that survive pruning need their forward
probabilities, whose recursion r_t = (r_{t-1} + phi_{t-1}) x_t is linear, so that with X_t = x_1 ... x_t it is
r_t = X_t (r_0 + sum_{s <= t} phi_{s-1} / X_{s-1}). In logarithms and float64. The window of frames is ESPnet's.
"""

from dataclasses import dataclass, replace

import torch
from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer
from torch import Tensor

# How many numbers are worked on at a time where all labels are candidates.
_NUMBERS = 1 << 22


@dataclass(frozen=True)
class ForwardVariables:
    """Log forward probabilities of prefixes.

    Args:
        label, blank: (prefixes, frames), of the prefix ending at each frame in its last label, or in a blank after it.
        score: (prefixes,), the log prefix probability.
        first, last: the frames that ESPnet's window is centred on.
    """

    label: Tensor
    blank: Tensor
    score: Tensor
    first: int
    last: int


@dataclass(frozen=True)
class PrunedState:
    """The candidates of a step that survived pruning; their forward probabilities are computed when they are scored
    next.

    Args:
        step: the prefixes of that step, their last labels (prefixes,), their number of labels, the window's start and
            end, and the log prefix probabilities (prefixes, labels) of the candidates.
        rows, labels: (int64, one axis) prefix and label of each surviving candidate.
    """

    step: tuple[ForwardVariables, Tensor, int, int, int, Tensor]
    rows: Tensor
    labels: Tensor

    def select(self, rows: slice) -> "PrunedState":
        """Only these."""
        return replace(self, rows=self.rows[rows], labels=self.labels[rows])


class PrefixScorer(CTCPrefixScorer):
    """ESPnet's scorer for batch beam search, with its results; the other searches are ESPnet's own."""

    def batch_init_state(self, x: Tensor, xs_lengths: Tensor | None = None) -> None:
        """As ESPnet's."""
        super().batch_init_state(x, xs_lengths)
        self._tabulate()

    def extend_prob(self, x: Tensor) -> None:
        """As ESPnet's, for speech that is still coming in."""
        super().extend_prob(x)
        self._tabulate()

    def extend_state(self, state):
        """As ESPnet's: the states grow when they are scored next."""
        return state

    def _tabulate(self) -> None:
        # Label-major, so that the frames of a candidate stand side by side.
        # In float16 ESPnet's zero is minus infinity, which a sum can't take back.
        x = self.impl.x[0]
        x = x.to(torch.promote_types(x.dtype, torch.float32)).clamp_min(self.impl.logzero)
        self.table = x.permute(1, 2, 0).contiguous()  # (utterances, labels, frames)
        self.precise = torch.float32 if self.table.device.type == "mps" else torch.float64  # what the device has

    def batch_score_partial(self, y: Tensor, ids: Tensor | None, state, x: Tensor) -> tuple[Tensor, tuple]:
        """As ESPnet's.

        Args:
            y: (hypotheses, length), int64, the labels so far, behind one that stands for the start.
            ids: (hypotheses, candidates), the labels to score, or None for all.
            state: of the step before.
            x: not needed.

        Returns:
            what each label adds to the log prefix probability, (hypotheses, labels), and the state.
        """
        impl = self.impl
        each = len(y) // impl.batch
        utterance = torch.arange(impl.batch, device=y.device).repeat_interleave(each)
        length, last = y.shape[1] - 1, y[:, -1]
        prefix = self._begin(utterance) if _nothing(state) else self._forward(_joined(state), utterance)
        total = torch.logaddexp(prefix.label, prefix.blank)  # (hypotheses, frames)
        first, latest, start, end = self._window(prefix, total, length)

        psi = torch.full((len(y), impl.odim), impl.logzero, dtype=total.dtype, device=y.device)
        if ids is None:
            at_a_time = max(1, _NUMBERS // (impl.odim * (end - start + 1)))
            labels = torch.arange(impl.odim, device=y.device)
            for begin in range(0, len(y), at_a_time):
                block = slice(begin, begin + at_a_time)
                psi[block] = self._prefix(
                    self.table[utterance[block]],
                    labels == last[block, None],
                    total[block],
                    prefix.blank[block],
                    length,
                    start,
                    end,
                )
        else:
            candidates = self.table[utterance[:, None], ids]  # (hypotheses, candidates, frames)
            again = ids == last[:, None]
            psi.scatter_(1, ids, self._prefix(candidates, again, total, prefix.blank, length, start, end))
        psi[:, impl.eos] = total.gather(1, impl.end_frames.to(y.device)[utterance, None]).squeeze(1)
        if impl.eos != impl.blank:
            psi[:, impl.blank] = impl.logzero
        step = (replace(prefix, first=first, last=latest), last, length, start, end, psi)
        return (psi - prefix.score.unsqueeze(1)).to(impl.dtype), step

    def select_state(self, state, i: int, new_id: int | None = None):
        """The state of hypothesis i, or of its candidate new_id."""
        if isinstance(state, PrunedState):
            return state.select(slice(i, i + 1))
        if isinstance(state, tuple) and len(state) == 6:
            device = state[1].device
            return PrunedState(state, torch.tensor([i], device=device), torch.tensor([new_id], device=device))
        return super().select_state(state, i, new_id)

    def batch_select_state(self, state: tuple, best_ids: Tensor) -> PrunedState:
        """The state of the hypotheses that survived pruning.

        Args:
            best_ids: (utterances, beam), the hypothesis within its utterance times the number of labels, plus the
                label.
        """
        hypotheses = len(state[1])
        first = torch.arange(0, hypotheses, hypotheses // len(best_ids), device=best_ids.device).unsqueeze(-1)
        return PrunedState(state, (best_ids // self.impl.odim + first).flatten(), (best_ids % self.impl.odim).flatten())

    def _begin(self, utterance: Tensor) -> ForwardVariables:
        """The empty prefix: nothing but blanks."""
        blank = self.table[utterance, self.impl.blank].to(self.precise).cumsum(-1)
        return ForwardVariables(torch.full_like(blank, self.impl.logzero), blank, torch.zeros_like(blank[:, 0]), 0, 1)

    def _window(self, prefix: ForwardVariables, total: Tensor, length: int) -> tuple[int, int, int, int]:
        """The frames that the window is centred on, and those that it begins at and ends before."""
        impl = self.impl
        if impl.margin <= 0:
            return 0, 0, min(max(length, 1), impl.input_length), impl.input_length
        first, last = torch.stack(total.argmax(dim=1).aminmax()).tolist()  # one transfer from the device
        first, last = max(first, prefix.first), max(last, prefix.last)
        start = min(prefix.last, max(first - impl.margin, length, 1))
        return first, last, start, impl._window_end(last, last + impl.margin + 1)

    def _prefix(
        self, x: Tensor, again: Tensor, total: Tensor, blank: Tensor, length: int, start: int, end: int
    ) -> Tensor:
        """Log prefix probabilities: x (hypotheses, candidates, frames), again says which repeat the last label."""
        before = slice(start - 1, end - 1)
        phi = torch.where(again.unsqueeze(-1), blank[:, None, before], total[:, None, before])
        ending = (phi + x[..., start:end]).logsumexp(-1)
        at_once = x[..., 0].to(ending.dtype) if length == 0 else ending.new_full((), self.impl.logzero)
        return torch.logaddexp(ending, at_once)

    def _forward(self, pruned: PrunedState, utterance: Tensor) -> ForwardVariables:
        """Log forward probabilities of the surviving candidates."""
        prefix, last, length, start, end, psi = pruned.step
        rows, labels = pruned.rows, pruned.labels
        frames, known = self.table.shape[-1], prefix.blank.shape[-1]
        x = self.table[utterance, labels].to(self.precise)  # (hypotheses, frames)
        silence = self.table[utterance, self.impl.blank].to(self.precise)
        phi = prefix.blank[rows]
        total = torch.logaddexp(prefix.label[rows], phi)
        phi = torch.where((labels == last[rows]).unsqueeze(1), phi, total)

        label = torch.full_like(x, self.impl.logzero)
        blank = label.clone()
        if length == 0:
            label[:, 0] = x[:, 0]
        window, before = slice(start, end), slice(start - 1, end - 1)
        label[:, window] = _recursion(label[:, start - 1], phi[:, before], x[:, window])
        blank[:, window] = _recursion(blank[:, start - 1], label[:, before], silence[:, window])
        if end < known:  # past the window a prefix stays silent
            blank[:, end:known] = torch.logaddexp(label[:, end - 1], blank[:, end - 1]).unsqueeze(1) + silence[
                :, end:known
            ].cumsum(1)
        if known < frames:
            blank[:, known:] = blank[:, known - 1, None] + silence[:, known:].cumsum(1)
        return ForwardVariables(label, blank, psi[rows, labels], prefix.first, prefix.last)


def _recursion(first: Tensor, phi: Tensor, x: Tensor) -> Tensor:
    """Logarithms of r_t = (r_{t-1} + phi_{t-1}) x_t: first (n,) is r_0, phi and x are (n, frames), x one frame on."""
    product = x.cumsum(1)
    terms = torch.cat((phi[:, :1], phi[:, 1:] - product[:, :-1]), dim=1)
    sums = torch.cat((first.unsqueeze(1), terms), dim=1).logcumsumexp(1)
    return product + sums[:, 1:]


def _nothing(state) -> bool:
    return state is None or (isinstance(state, list) and state[0] is None)


def _joined(state: PrunedState | list[PrunedState]) -> PrunedState:
    if isinstance(state, PrunedState):
        return state
    first = state[0]
    return replace(first, rows=torch.cat([s.rows for s in state]), labels=torch.cat([s.labels for s in state]))
