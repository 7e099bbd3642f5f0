"""A small network in its old form and in refactored ones, all of which compute the same, and their training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 8


class Parts(NamedTuple):
    """What the computation needs, whatever the modules around it are called."""

    first: nn.Linear
    qkv_weight: Tensor
    qkv_bias: Tensor
    layers: list[nn.Linear]
    head: nn.Linear


def linear(width: int = WIDTH) -> nn.Linear:
    return nn.Linear(WIDTH, width)


class Network(nn.Module):
    def parts(self) -> Parts:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts()
        x = torch.tanh(parts.first(x))
        q, k, v = functional.linear(x, parts.qkv_weight, parts.qkv_bias).chunk(3, dim=-1)
        x = torch.softmax(q @ k.T, dim=-1) @ v
        for layer in parts.layers:
            x = torch.tanh(layer(x))
        return parts.head(x)  # type: ignore[no-any-return]


class Old(Network):
    def __init__(self) -> None:
        super().__init__()
        self.first = linear()
        self.qkv = linear(3 * WIDTH)
        self.layers = nn.ModuleList([linear(), linear()])
        self.head = linear()

    def parts(self) -> Parts:
        return Parts(
            self.first,
            self.qkv.weight,
            self.qkv.bias,
            list(self.layers),  # type: ignore[arg-type]
            self.head,
        )


class Renamed(Network):
    """Other names in the same order, one module deeper."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.stem = linear()
        self.net.qkv = linear(3 * WIDTH)
        self.net.blocks = nn.ModuleList([linear(), linear()])
        self.net.head = linear()

    def parts(self) -> Parts:
        net: Any = self.net
        return Parts(net.stem, net.qkv.weight, net.qkv.bias, list(net.blocks), net.head)


class HeadFirst(Old):
    """Other names in another order."""

    def __init__(self) -> None:
        Network.__init__(self)
        self.out = linear()
        self.layers = nn.ModuleList([linear(), linear()])
        self.first = linear()
        self.qkv = linear(3 * WIDTH)

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        return self.out


class Split(Network):
    """The three projections by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.first = linear()
        self.q, self.k, self.v = linear(), linear(), linear()
        self.layers = nn.ModuleList([linear(), linear()])
        self.head = linear()

    def parts(self) -> Parts:
        projections = (self.q, self.k, self.v)
        weight = torch.cat([projection.weight for projection in projections])
        bias = torch.cat([projection.bias for projection in projections])
        return Parts(self.first, weight, bias, list(self.layers), self.head)  # type: ignore[arg-type]


class Grouped(Old):
    """The rows of the projection lie head by head: of each, those of query, key and value."""

    HEADS = 2

    def parts(self) -> Parts:
        parts = super().parts()
        return parts._replace(
            qkv_weight=self._in_blocks(parts.qkv_weight), qkv_bias=self._in_blocks(parts.qkv_bias)
        )

    def _in_blocks(self, rows: Tensor) -> Tensor:
        grouped = rows.view(self.HEADS, 3, WIDTH // self.HEADS, *rows.shape[1:])
        return grouped.transpose(0, 1).reshape(rows.shape)


class Stacked(Old):
    """The layers are one parameter each of weights and biases."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.stack([layer.weight.detach() for layer in self.layers])
        bias = torch.stack([layer.bias.detach() for layer in self.layers])
        del self.layers, self.head
        self.layers = nn.Module()  # type: ignore[assignment]
        self.layers.weight = nn.Parameter(weight)
        self.layers.bias = nn.Parameter(bias)
        self.head = linear()

    def parts(self) -> Parts:
        def layer(number: int) -> Callable[[Tensor], Tensor]:
            weight: Any = self.layers.weight
            bias: Any = self.layers.bias
            return lambda x: functional.linear(x, weight[number], bias[number])

        return Parts(self.first, self.qkv.weight, self.qkv.bias, [layer(0), layer(1)], self.head)  # type: ignore[list-item]


class Transposed(Old):
    """The projection's weight lies as that of GPT-2's Conv1D does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv.weight = nn.Parameter(self.qkv.weight.detach().t().contiguous())

    def parts(self) -> Parts:
        parts = super().parts()
        return parts._replace(qkv_weight=parts.qkv_weight.t().contiguous())


class Swapped(Old):
    """The layers, which are of one shape, are counted from the end."""

    def parts(self) -> Parts:
        parts = super().parts()
        return parts._replace(layers=parts.layers[::-1])


class FromOne(Old):
    """The layers are counted from one, below another name."""

    def __init__(self) -> None:
        super().__init__()
        layers = self.layers
        del self.layers, self.head
        self.blocks = nn.ModuleDict({"1": layers[0], "2": layers[1]})
        self.head = linear()

    def parts(self) -> Parts:
        return Parts(
            self.first,
            self.qkv.weight,
            self.qkv.bias,
            list(self.blocks.values()),  # type: ignore[arg-type]
            self.head,
        )


class Reusing(Old):
    """The last layer has a bias only, and uses the weight of the first."""

    def __init__(self) -> None:
        super().__init__()
        bias = self.head.bias
        self.head = nn.Module()  # type: ignore[assignment]
        self.head.bias = bias

    def parts(self) -> Parts:
        def head(x: Tensor) -> Tensor:
            return functional.linear(x, self.first.weight, self.head.bias)

        return Parts(self.first, self.qkv.weight, self.qkv.bias, list(self.layers), head)  # type: ignore[arg-type]


def tied(network: type[Network]) -> Callable[[], Network]:
    """Let the last layer have the weight of the first."""

    def build() -> Network:
        model = network()
        parts = model.parts()
        parts.head.weight = parts.first.weight
        return model

    return build


def frozen(network: type[Network]) -> Callable[[], Network]:
    """Let one layer learn nothing."""

    def build() -> Network:
        model = network()
        model.parts().layers[0].requires_grad_(False)
        return model

    return build


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    """Train from one step to another, on data that depends on the step alone; gives the losses."""
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x, y = (torch.randn(5, WIDTH, generator=generator) for _ in range(2))
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a training saves, by itself: later steps do not change it."""
    saved = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    twins: dict[int, Tensor] = {}
    return _detached(saved, twins)  # type: ignore[no-any-return]


def _detached(value: Any, twins: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return twins.setdefault(value.untyped_storage()._cdata, value.clone())
    if isinstance(value, Mapping):
        made = type(value)((key, _detached(item, twins)) for key, item in value.items())
        if hasattr(value, "_metadata"):
            made._metadata = value._metadata.copy()
        return made
    return [_detached(item, twins) for item in value] if isinstance(value, list) else value


def facts(value: Any) -> Any:
    """A value in a form that is equal for what is equal bit for bit, in the same order."""
    if isinstance(value, Tensor):
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
        return str(value.dtype), tuple(value.shape), data
    if isinstance(value, Mapping):
        return [(key, facts(item)) for key, item in value.items()]
    return [facts(item) for item in value] if isinstance(value, (list, tuple)) else value


def contents(value: Any) -> Any:
    """The same, in any order of the names."""
    if isinstance(value, Mapping):
        return {key: contents(item) for key, item in value.items()}
    return [contents(item) for item in value] if isinstance(value, list) else facts(value)
