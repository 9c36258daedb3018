"""A transformer's forward pass in parts: its blocks from any of them on, and its head over some rows.

Shapes: B sequences, T tokens, N rows, D d_in, V vocabulary.
"""

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysae.analysis.splicing import with_tensor
from raysae.errors import UserError
from raysae.transformer.layouts import tensors_of
from raysae.transformer.towers import Tower, test_ids

TOLERANCE = 1e-5
"""How far the parts may be from the whole, as a share of its largest value, in 32 bits."""
HALF_TOLERANCE = 0.02
LOGITS = 2**24
"""Values of logits that are in memory at a time."""


@dataclass(frozen=True)
class Final:
    """What the last block and the last norm leave of a batch."""

    rows_BTD: Tensor
    """The final rows, or the logits of a model whose head cannot be called on its own."""
    streams: dict[int, Tensor]
    """What each block that was kept gave, ``[B, T, D]``."""


class LanguageModel:
    """The parts of a transformer; short test passes find what it allows, compared with the whole.

    Raises UserError when its forward pass gives no rows for its tokens.
    """

    def __init__(self, model: Any, tower: Tower):
        self.model, self.tower = model, tower
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self._arguments = {id(module): _arguments(module) for module in (model, tower.forward)}
        self._ids_BT = test_ids(model).to(self.device)
        self.whole = False
        """Whether the head cannot be called on its own, so that final rows are logits."""
        self._structures: list[Any] = [None] * len(tower.blocks)
        self._given = self._first_pass()
        self.has_head = self._find_head()
        self.causal = self._is_causal()
        self.padding = self._padding_holds()
        self.resumes = self._can_resume()

    @property
    def vocabulary(self) -> int:
        """Values of a row of logits; 0 without a head."""
        return self._vocabulary if self.has_head else 0

    @property
    def rows_together(self) -> int:
        """Rows whose logits are in memory at a time."""
        return max(1, LOGITS // max(1, self.vocabulary))

    @torch.inference_mode()
    def final(
        self, ids_BT: Tensor, mask_BT: Tensor, keep: Collection[int] = (),
        start: tuple[int, Tensor] | None = None,
    ) -> Final:  # fmt: skip
        """The final rows of a right-padded batch.

        ``keep`` are blocks whose output is kept; ``start`` a block and what it gives ``[B, T, D]``: it
        and those before it do not run, where the model allows that.
        """
        kept: dict[int, Tensor] = {}
        with self._keeping(keep, kept), self._standing_in(start):
            rows_BTD = self._rows(ids_BT, mask_BT)
        return Final(rows_BTD, kept)

    @torch.inference_mode()
    def logits(self, rows_ND: Tensor) -> Tensor:
        """The logits ``[N, V]`` of final rows, in float32. At most ``rows_together`` at a time fit."""
        if self.whole:
            return rows_ND.float()
        given = with_tensor(self._given, self._place, rows_ND[None])
        with stand_in(self.tower.forward, lambda *_, **__: given):
            ids_BT = self._ids_BT[:1, :1].expand(1, len(rows_ND))
            return self._call(self.model, ids_BT).logits[0].float()

    def _rows(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        if self.whole:
            return self._call(self.model, ids_BT, mask_BT).logits
        given = self._call(self.tower.forward, ids_BT, mask_BT)
        return list(tensors_of(given))[self._place]

    def _call(self, module: nn.Module, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Any:
        mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
        return module(
            input_ids=ids_BT.to(self.device), attention_mask=mask_BT.to(self.device),
            **self._arguments[id(module)],
        )  # fmt: skip

    @torch.inference_mode()
    def _first_pass(self) -> Any:
        """What the tower gives in a test pass, and its blocks; where the final rows are in it."""
        handles = [
            block.register_forward_hook(self._structure_of(number))
            for number, block in enumerate(self.tower.blocks)
        ]
        try:
            given = self._call(self.tower.forward, self._ids_BT)
        finally:
            for handle in handles:
                handle.remove()
        shape = tuple(self._ids_BT.shape)
        places = [
            n
            for n, t in enumerate(tensors_of(given))
            if tuple(t.shape[:2]) == shape and t.dim() == 3
        ]
        if not places:
            raise UserError(
                f"{type(self.model).__name__}: its forward pass gives no rows for its tokens; raysae "
                "cannot tell what a change of its activations does"
            )
        self._place = places[0]
        return given

    def _structure_of(self, number: int) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: tuple, output: Any) -> None:
            self._structures[number] = output

        return keep

    @torch.inference_mode()
    def _find_head(self) -> bool:
        """Whether the model has a head of a language model; finds out if it can be called on its own."""
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        if head is None:
            return False
        whole = getattr(self._call(self.model, self._ids_BT), "logits", None)
        if whole is None or whole.shape[:2] != self._ids_BT.shape:
            return False
        self._vocabulary = whole.shape[-1]
        try:
            parts = [self.logits(row_TD) for row_TD in self._rows(self._ids_BT)]
            self.whole = not self._same(whole.float(), torch.stack(parts))
        except Exception:  # a head that wants more than the final rows
            self.whole = True
        return True

    def _same(self, one: Tensor, other: Tensor) -> bool:
        limit = HALF_TOLERANCE if self.dtype in (torch.float16, torch.bfloat16) else TOLERANCE
        apart = (one.double() - other.double()).abs().max()
        return bool(apart <= limit * one.double().abs().max())

    @torch.inference_mode()
    def _is_causal(self) -> bool:
        """Whether a token changes no row before its own."""
        other_BT = self._ids_BT[:1].clone()
        other_BT[0, -1] = self._ids_BT[1, 0]
        if bool(other_BT[0, -1] == self._ids_BT[0, -1]):
            other_BT[0, -1] = self._ids_BT[1, 1]
        before = self._rows(self._ids_BT[:1])[:, :-1]
        return self._same(before, self._rows(other_BT)[:, :-1])

    @torch.inference_mode()
    def _padding_holds(self) -> bool:
        """Whether a text's rows are the same when it is padded beside a longer one."""
        short = self._ids_BT.shape[1] - 5
        mask_BT = torch.ones_like(self._ids_BT[:2])
        mask_BT[1, short:] = 0
        try:
            padded = self._rows(self._ids_BT[:2], mask_BT)[1, :short]
        except Exception:  # a model that cannot run over padding at all
            return False
        return self._same(self._rows(self._ids_BT[1:2, :short])[0], padded)

    @torch.inference_mode()
    def _can_resume(self) -> bool:
        """Whether passes from every block on give what whole passes do."""
        pick = torch.tensor([0, 1, 1, 0], device=self.device)
        layouts = {end.left.place.layout for end in self.tower.ends if end.left is not None}
        if layouts != {"batch first"}:
            return False
        mask_BT = torch.ones_like(self._ids_BT[:2])
        mask_BT[1, -3:] = 0
        block = len(self.tower.blocks) // 2
        whole = self.final(self._ids_BT[:2], mask_BT, keep=[block])
        try:
            resumed = self._resumed(block, whole.streams[block][pick], mask_BT[pick], pick)
        except Exception:  # a model whose blocks need more than the stream
            return False
        real = mask_BT[pick].bool()
        return self._same(whole.rows_BTD[pick][real], resumed[real])

    def _resumed(self, block: int, stream_BTD: Tensor, mask_BT: Tensor, pick: Tensor) -> Tensor:
        self.resumes = True
        return self.final(self._ids_BT[pick], mask_BT, start=(block, stream_BTD)).rows_BTD

    @contextmanager
    def _keeping(self, blocks: Collection[int], kept: dict[int, Tensor]) -> Iterator[None]:
        handles = [
            self.tower.blocks[number].register_forward_hook(self._keeper(number, kept))
            for number in blocks
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keeper(self, number: int, kept: dict[int, Tensor]) -> Callable[..., None]:
        index = self._left(number)

        def keep(_module: nn.Module, _args: tuple, output: Any) -> None:
            kept[number] = list(tensors_of(output))[index].clone()

        return keep

    def _left(self, block: int) -> int:
        left = self.tower.ends[block].left
        assert left is not None, "checked when the tower was found"
        return left.place.index

    @contextmanager
    def _standing_in(self, start: tuple[int, Tensor] | None) -> Iterator[None]:
        """Within the block, the blocks up to the first of ``start`` give its stream at once."""
        if start is None or not self.resumes:
            yield
            return
        last, stream_BTD = start
        outputs = [
            with_tensor(self._structures[number], self._left(number), stream_BTD)
            for number in range(last + 1)
        ]
        blocks = self.tower.blocks
        try:
            for number, output in enumerate(outputs):
                blocks[number].forward = _giving(output)
            yield
        finally:
            for number in range(last + 1):
                del blocks[number].forward


@contextmanager
def stand_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block, ``forward`` runs in the place of the module's own."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _giving(output: Any) -> Callable[..., Any]:
    return lambda *_, **__: output


def _arguments(module: nn.Module) -> dict[str, Any]:
    """Arguments that keep a pass from keeping what generation would use."""
    known = inspect.signature(module.forward).parameters
    return {"use_cache": False} if "use_cache" in known else {}
