"""A run on a terminal and in a log: the live board, and a JSON line for each event."""

from collections.abc import Mapping
from typing import Any

from raysae.console.board import Board, emit
from raysae.metrics import CONSOLE, LOG, PROGRESS, figures, partly
from raysae.records.events import Began, Committed, Ended, Event, Failed, Item, Progressed, Stopped


class ConsoleListener:
    """Shows the progress of items; without a terminal, one line for each item that has ended."""

    def __init__(self) -> None:
        self._board: Board | None = None

    def hear(self, event: Event) -> None:
        """Show the event; one outside a block of work (``Began`` to ``Ended``) is ignored."""
        if isinstance(event, Began):
            self._board = Board(event.title, event.items)
            self._board.start()
        elif self._board is None:
            return
        elif isinstance(event, Ended):
            self._board.stop()
            self._board = None
        else:
            self._show(self._board, event)

    def _show(self, board: Board, event: Event) -> None:
        if isinstance(event, Progressed):
            cells = {**_settings(event.item), **figures(event.record, CONSOLE)}
            cells |= figures(event.record, PROGRESS)
            self._update(board, event.item, cells, event.fraction, event.record)
        elif isinstance(event, Committed):
            record = {**event.record, **event.record.get("metrics", {})}
            cells = {**_settings(event.item), **figures(record, CONSOLE)}
            if event.item.parameters:
                cells |= figures(record, PROGRESS)
            self._update(board, event.item, cells, 1.0, record)
        elif isinstance(event, Failed):
            cells = {**_settings(event.item), "failed": event.reason}
            self._update(board, event.item, cells, 1.0, {"failed": event.reason})
        elif isinstance(event, Stopped):
            cells = {"stopped": event.reason}
            self._update(board, event.item, cells, 1.0, {"stopped": event.reason})

    @staticmethod
    def _update(
        board: Board, item: Item, cells: dict[str, str], fraction: float, record: Mapping[str, Any]
    ) -> None:
        board.update(item.name, {name: text for name, text in cells.items() if text}, fraction)
        reasons = {key: record[key] for key in ("failed", "stopped") if key in record}
        logged = {**partly(record, LOG), **reasons}
        emit(
            "progress",
            of=board.title,
            key=item.name,
            done=round(fraction, 4),
            eta=board.eta(),
            **logged,
        )


def _settings(item: Item) -> dict[str, str]:
    return {key.split(".")[-1]: str(value) for key, value in item.parameters.items()}
