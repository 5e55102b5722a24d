"""The facts of one forward call: padding, cache length, where the prompt ends, which adapter each row uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.kept_rows import INVOKING, QUERIES
from luthier.core.contracts.positions import Invocation, Positions
from luthier.core.errors import LuthierError
from luthier.core.sites.caches import cache_in
from luthier.core.sites.packing import Packing, packing_now


@dataclass(frozen=True)
class Prompt:
    """Where the prompts of a batch end, when the call itself does not tell."""

    end: int | Tensor | None = None
    """Column behind the last prompt token: one number, or one for each row [B]."""
    mask: Tensor | None = None
    """Padding mask [B, T], when a model passes only its expanded form on."""
    told: bool | Tensor = True
    """Whether `generate` or the user said so, of all rows or of each [B]; labels only tell what is learned."""


@dataclass(eq=False)
class Call:
    """One pass through one stack of blocks."""

    batch: int
    length: int
    past: int = 0
    mask: Tensor | None = None
    """The padding mask, [B, past + length], 1 for real tokens; None means no padding."""
    prompt: Prompt = field(default_factory=Prompt)
    device: torch.device | None = None
    tasks: str | Sequence[str] | Tensor | None = None
    """The tasks of the rows (see `luthier.core.contracts.router`)."""
    cache: Any = None
    """The cache that the call was given."""
    query: Tensor | None = None
    """The mean of each row's prompt embeddings [batch, d], where a form goes by it (see `measure`)."""
    packing: Packing | None = None
    """How blocks have the tokens of all rows in one stream, where they do."""
    text: Tensor | None = None
    """The tokens among which an invocation is looked for [batch, columns], -1 elsewhere, where a form goes by one (see
    `note_text`)."""
    behind: bool = False
    """Whether all of this pass stands behind that text."""
    _found: dict[Positions | Invocation, tuple[Tensor, Tensor] | None] = field(default_factory=dict)
    _parts: dict[str, Call] = field(default_factory=dict)

    def of_rows(self, rows: Tensor, count: int, name: str) -> Call:
        """Returns the call of some of `count` rows, those of the adapter `name`; beams repeat each row."""
        if name not in self._parts:
            beams = self.batch // max(1, count)
            own = (rows[:, None] * beams + torch.arange(beams, device=rows.device)).flatten()
            end, told, tasks = self.prompt.end, self.prompt.told, self.tasks
            if isinstance(end, Tensor) and end.dim() and len(end) > 1:
                end = end[(rows if len(end) == count else own).to(end.device)]
            if isinstance(told, Tensor):
                told = told[(rows if len(told) == count else own).to(told.device)]
            if isinstance(tasks, Tensor) and len(tasks) == count:
                tasks = tasks[rows.to(tasks.device)]
            elif isinstance(tasks, list | tuple) and len(tasks) == count:
                tasks = [tasks[row] for row in rows.tolist()]
            mask = None if self.mask is None else self.mask[own.to(self.mask.device)]
            packing = None if self.packing is None else self.packing.of_rows(rows.tolist())
            query = None if self.query is None else self.query[own.to(self.query.device)]
            text = None if self.text is None else self.text[own.to(self.text.device)]
            part = Call(len(own), self.length, self.past, mask, Prompt(end, told=told), self.device, tasks)
            part.query, part.packing, part.text, part.behind = query, packing, text, self.behind
            self._parts[name] = part
        return self._parts[name]

    def locate(self, positions: Positions | Invocation) -> tuple[Tensor, Tensor] | None:
        """Returns (index, keep), both [B, P]: columns of this pass to edit, and which of them are real edits.

        With n prompt tokens in a row, the first min(p, floor(n/2)) and the last min(s, ceil(n/2)) are edited.
        None when the pass holds no prompt: later tokens see the edits through the cache. Behind an invocation all are.
        """
        if positions not in self._found:
            invoked = isinstance(positions, Invocation)
            self._found[positions] = self._invoked(positions.tokens) if invoked else self._locate(positions)
        return self._found[positions]

    def _invoked(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """All columns of this pass, and which of them stand at or behind the start of the last invocation."""
        if self.text is None:
            raise LuthierError(
                "an adapter acts from certain tokens on, and this pass does not tell its tokens: the model was given "
                "embeddings or tokens of another shape than its rows, or its cache was filled by another's pass or by "
                "a compiled one, or is a copy. Give it the tokens [rows, length], with the cache that they were read "
                "into."
            )
        index = torch.arange(self.length, device=self.text.device).expand(len(self.text), -1)
        if self.text.shape[1] < len(tokens):
            return index, torch.zeros_like(index, dtype=torch.bool)
        wanted = torch.tensor(tokens, device=self.text.device)
        met = (self.text.unfold(1, len(tokens), 1) == wanted).all(-1)
        last = (met * torch.arange(1, met.shape[1] + 1, device=met.device)).amax(1, keepdim=True)
        start = torch.zeros_like(last) if self.behind else last - 1
        return index, (last > 0) & (self.past + index >= start)

    def note_text(self, ids: Tensor | None) -> None:
        """Notes the tokens among which invocations count: those of the prompt, where its end is told, or else all.

        They stay with the cache, for the tokens behind them. `ids` [batch, length] are those of this pass.
        """
        known, total = INVOKING.of(self.cache), self.past + self.length
        told = self._told_end()
        if self.past and (told is None or told <= self.past):
            self.text, self.behind = known, True
            return
        if ids is None or ids.shape != (self.batch, self.length):
            return
        if told is not None and told > total:
            raise LuthierError(
                "a prompt came in chunks, and an adapter goes by which of its tokens come last; give it whole."
            )
        before = ids.new_full((self.batch, 0), -1) if known is None else known.to(ids.device)
        text = torch.cat([nn.functional.pad(before, (self.past - before.shape[1], 0), value=-1), ids], 1)
        asked = self._of_prompt() if self.prompt.told is True else self._real(total)
        if isinstance(self.prompt.told, Tensor):
            asked = torch.where(self.prompt.told.to(asked.device)[:, None], self._of_prompt()[:, :total], asked)
        self.text = text.masked_fill(~asked, -1)
        INVOKING.keep(self.cache, self.text)

    def _told_end(self) -> int | None:
        """The column behind the longest prompt whose end is told."""
        if self.prompt.end is None or self.prompt.told is False:
            return None
        ends, told = torch.as_tensor(self.prompt.end), self.prompt.told
        if isinstance(told, Tensor):
            ends = ends[told.to(ends.device)]
        return int(ends.max()) if ends.numel() else None

    def _locate(self, positions: Positions) -> tuple[Tensor, Tensor] | None:
        if self.past and self.prompt.end is None:
            return None  # a token after the prompt
        if self.past and isinstance(self.prompt.end, int) and self.past >= self.prompt.end:
            return None
        chosen = self._chosen(positions)[:, self.past : self.past + self.length]
        width = min(positions.first + positions.last, self.length)
        # a stable sort moves the chosen columns to the front and keeps every shape static
        index = torch.argsort((~chosen).to(torch.uint8), dim=1, stable=True)[:, :width]
        return index, chosen.gather(1, index)

    def _chosen(self, positions: Positions) -> Tensor:
        """True where a column is edited, [B, columns]; a prompt that comes in chunks reaches beyond this one."""
        real = self._of_prompt()
        rank = real.long().cumsum(1) - 1
        count = real.long().sum(1, keepdim=True)
        first = (count // 2).clamp(max=positions.first)
        last = (count - count // 2).clamp(max=positions.last)
        return real & ((rank < first) | (rank >= count - last))

    def _of_prompt(self) -> Tensor:
        """True where a column is of the row's prompt, [B, columns]."""
        total = self.past + self.length
        real = self._real(total)
        if isinstance(self.prompt.end, int) and self.prompt.end > total:
            real = nn.functional.pad(real, (0, self.prompt.end - total), value=True)
            total = self.prompt.end
        if self.prompt.end is not None:
            columns = torch.arange(total, device=real.device)
            real = real & (columns < self._end(self.prompt.end, real))
        return real

    def measure(self, x: Tensor) -> None:
        """Notes the mean of x [B, length, d], what enters the first block, over each row's prompt.

        It stays with the cache, for the tokens behind the prompt; a pass whose cache has none is left without.
        """
        if self.past:
            self.query = QUERIES.of(self.cache)
            return
        if x.shape[1] != self.length:  # frames or patches, of which no prompt is known
            return
        asked = self._of_prompt()
        if asked.shape[1] > self.length:
            raise LuthierError(
                "a prompt came in chunks, and an adapter goes by the mean of all its tokens; give it whole."
            )
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        held = asked.to(wide.dtype)
        self.query = torch.einsum("bt,btd->bd", held, wide) / held.sum(1, keepdim=True).clamp(min=1)
        QUERIES.keep(self.cache, self.query)

    def _end(self, told: int | Tensor, real: Tensor) -> Tensor:
        """The column behind each row's prompt, [B or 1, 1]."""
        end = torch.as_tensor(told, device=real.device).reshape(-1, 1)
        if len(end) in (1, len(real)):
            return end
        if not len(end) or len(real) % len(end):
            raise LuthierError(f"the ends of {len(end)} prompts were told, but the pass has {len(real)} rows.")
        return end.repeat_interleave(len(real) // len(end), dim=0)  # beams repeat each row

    def _real(self, total: int) -> Tensor:
        mask = self.mask
        if mask is None:
            return torch.ones(self.batch, total, dtype=torch.bool, device=self.device)
        if mask.shape[1] < total:  # a cache that was filled without padding
            ahead = mask.new_ones(mask.shape[0], total - mask.shape[1])
            mask = torch.cat([ahead, mask], dim=1)
        return mask[:, :total].bool()


def read_call(arguments: dict[str, Any], prompt: Prompt) -> Call | None:
    """Reads the call of a stack from the arguments of its owner; None when they hold no sequence."""
    entering = next((arguments[n] for n in ENTRIES if isinstance(arguments.get(n), Tensor)), None)
    if entering is None:
        return None
    cache = cache_in(arguments)
    past = _filled(cache)
    mask = arguments.get("attention_mask")
    if not (isinstance(mask, Tensor) and mask.dim() == 2):
        mask = prompt.mask
        _refuse_packed(arguments.get("position_ids"))
    if mask is not None and len(mask) != len(entering):  # beams repeat each row
        mask = mask.repeat_interleave(len(entering) // len(mask), dim=0)
    packing = packing_now()
    return Call(entering.shape[0], entering.shape[1], past, mask, prompt, entering.device, cache=cache, packing=packing)


def _filled(cache: Any) -> int:
    """How many tokens a cache holds; one of recurrent states alone counts none."""
    try:
        return 0 if cache is None else int(cache.get_seq_length())
    except ValueError:  # which a cache without attention raises
        return 0


def entries(x: Tensor, rows: int) -> int:
    """Returns how many entries of an activation [entries, ...] belong to each row (beams, flattened tokens).

    Raises `LuthierError` where they are not the same for all.
    """
    if not rows or len(x) % rows:
        raise LuthierError(f"{rows} rows were given adapters, but the activation has {len(x)} rows.")
    return len(x) // rows


ENTRIES = ("input_ids", "inputs_embeds", "decoder_input_ids", "hidden_states", "input_values")


def _refuse_packed(position_ids: Any) -> None:
    if not isinstance(position_ids, Tensor) or torch.compiler.is_compiling():
        return
    if position_ids.dim() == 2 and bool((position_ids.diff(dim=1) < 0).any()):
        raise LuthierError(
            "a row packs several examples (position_ids start again), so prompt positions are not defined; "
            "train without packing, or use positions='all'."
        )


class OneHot:
    """Token ids as one-hot rows: `x @ M` is a look-up, so an embedding table acts as a linear layer."""

    def __init__(self, ids: Tensor, kept: Tensor | None = None) -> None:
        self.ids = ids
        self.kept = kept
        """What the one entry of each row is multiplied by, where dropout fell on it."""

    def __matmul__(self, matrix: Tensor) -> Tensor:
        rows = nn.functional.embedding(self.ids, matrix)
        return rows if self.kept is None else rows * self.kept[..., None].to(rows.dtype)

    def dim(self) -> int:
        """Returns the number of dimensions of the ids, not of an activation."""
        return self.ids.dim()

    def dropped(self, rate: float) -> OneHot:
        """Applies dropout to the rows: the entry of each is zero with probability `rate`, the others grow."""
        return OneHot(self.ids, nn.functional.dropout(torch.ones_like(self.ids, dtype=torch.float32), rate))


def edit(
    call: Call | None, positions: Positions | Invocation | None, edit_function, p, x: Tensor | OneHot, y: Tensor
) -> Tensor:
    """Applies `edit_function(p, x, y)` at the positions and returns y elsewhere."""
    if positions is None:
        return edit_function(p, x, y)
    if y.dim() < 3:
        raise LuthierError(f"positions need [batch, tokens, width]; the activation is {tuple(y.shape)}.")
    if y.dim() > 3 and (call is None or call.length != y.shape[1]):  # an image: its patches, row by row
        patches = y.flatten(1, -2)
        entering = x.flatten(1, -2) if isinstance(x, Tensor) and _alike(x, y) else patches
        return edit(call, positions, edit_function, p, entering, patches).view(y.shape)
    located = _fitting(call, y).locate(positions)
    if located is None:
        return y
    index, keep = (t[(...,) + (None,) * (y.dim() - 2)] for t in located)
    rows = lambda t: t.gather(1, index.expand(-1, -1, *t.shape[2:]))  # noqa: E731
    old = rows(y)
    entering = OneHot(x.ids.gather(1, index[..., 0])) if isinstance(x, OneHot) else rows(x) if _alike(x, y) else old
    new = torch.where(keep, edit_function(p, entering, old), old)
    return y.scatter(1, index.expand_as(new), new)


def _alike(x: Any, y: Tensor) -> bool:
    """Whether what entered has a vector for each that left."""
    return isinstance(x, Tensor) and x.shape[:-1] == y.shape[:-1]


def _fitting(call: Call | None, y: Tensor) -> Call:
    """The call that places y; frames and patches, which have no mask of their own, count from 0."""
    if call is not None and call.length == y.shape[1]:
        return call
    if call is not None and call.mask is not None and not bool(call.mask.bool().all()):
        raise LuthierError(
            f"positions were resolved for {call.length} padded inputs, but the activation has "
            f"{y.shape[1]} steps; use positions='all' here."
        )
    return Call(y.shape[0], y.shape[1], device=y.device)
