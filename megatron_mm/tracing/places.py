"""Which module of the model is at work: going forward from its hooks, going back from what is being undone."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class Places:
    """Answers with the path of a module, layers' numbers as *, "backward of" it, or with `otherwise`.

    autograd numbers what it notes down as it goes; so of each number it is known which module was at work.
    """

    def __init__(self, otherwise: str = "the step") -> None:
        self.otherwise = otherwise
        self._names: dict[nn.Module, str] = {}
        self._inside: list[str] = []
        self._numbers: list[int] = []  # of autograd's next note, whenever a module began or ended
        self._since: list[str] = []  # the module that was at work from there on

    def know(self, model: nn.Module) -> None:
        """Learn the modules' names."""
        for path, module in model.named_modules():
            self._names[module] = ".".join("*" if part.isdigit() else part for part in path.split("."))

    def now(self) -> str:
        """What is at work."""
        if self._inside:
            return self._inside[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return self.otherwise
        place = bisect_right(self._numbers, node._sequence_nr()) - 1
        return f"backward of {self._since[place] or self.otherwise}" if place >= 0 else "backward"

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of every module's forward pass."""
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._inside.append(self._names.get(module) or (self._inside[-1] if self._inside else self.otherwise))
        self._note()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside.pop()
        self._note()

    def _note(self) -> None:
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._since.append(self._inside[-1] if self._inside else "")
