"""Adapters: small trained branches beside the layers of a backbone that may stay frozen.

`wrap` adds them to any model by patterns on the paths of its submodules; a model's own code does
not know about them. The branches are

* "parallel", y = f(x) + A(x): beside a k x k convolution a 1x1 convolution with the same stride
  and without bias (parallel residual adapters, Rebuffi et al. 2018, arXiv 1803.10082; in federated
  learning arXiv 2302.02949), beside a dense layer or a whole block a bottleneck with ReLU (He et
  al. 2022, arXiv 2110.04366);
* "series", y = f(x) + A(f(x)) (Rebuffi et al. 2017, arXiv 1705.08045; Houlsby et al. 2019, arXiv
  1902.00751);
* "lora", y = f(x) + B A x: a change of the layer's kernel of low rank (Hu et al. 2021, arXiv
  2106.09685), whose A has the window of a convolution.

Backbone parameters keep their paths and their initial bits; those of a branch lie under
`adapters/` and the path of its layer. Which of them are trained is up to the freeze rules of
`partial_training`.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, Scope

from fedlite.errors import UserError
from fedlite.models import compact, convolution, layers

KINDS = ("none", "parallel", "series", "lora")
INITS = ("zero", "normal")

_SCOPE = "adapters"
# Of a branch's last map: deviation sqrt(2 / (k^2 c_out)), as in Rebuffi et al. 2018.
_LAST = {
    "zero": nn.initializers.zeros,
    "normal": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
}
_FIRST = nn.initializers.he_normal()


@dataclasses.dataclass(frozen=True)
class Adapters:
    """What is added, and where.

    Attributes:
      kind: one of `KINDS`; "none" adds nothing.
      places: pairs (pattern, rank). The first pattern that matches a submodule's whole path puts
        a branch there. A branch's bottleneck has `rank` units; 0 makes it one linear map without
        bias. "layer1/ffn1>ffn2" reads the input of layer1/ffn1 and adds to the output of its
        sibling ffn2 (parallel only): a branch beside both.
      init: of a branch's last map. "zero" leaves the outputs of the backbone as they are, "normal"
        draws with the deviation sqrt(2 / (k^2 c_out)).
    """

    kind: str = "none"
    places: tuple[tuple[str, int], ...] = ()
    init: str = "zero"

    def __post_init__(self):
        for option, value, choices in (("kind", self.kind, KINDS), ("init", self.init, INITS)):
            if value not in choices:
                raise UserError(f"adapters.{option} is {value!r}; use one of {', '.join(choices)}")
        object.__setattr__(self, "places", tuple(map(self._place, self.places)))
        if (self.kind == "none") != (not self.places):
            raise UserError(
                f"adapters.kind = {self.kind!r} with {len(self.places)} adapters.places; set both, "
                "or neither"
            )

    def _place(self, place: Any) -> tuple[str, int]:
        form = isinstance(place, tuple | list) and len(place) == 2 and isinstance(place[0], str)
        if not form or type(place[1]) is not int or place[1] < 0:
            raise UserError(
                "adapters.places is made of pairs (pattern, rank of at least 0), as in "
                f"(('conv.*', 0), ...); got {place!r}"
            )
        pattern, rank = place
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"adapters.places: {pattern!r} is not a regular expression ({error})"
            ) from error
        if self.kind == "lora" and not rank:
            raise UserError(f"adapters.places: {pattern!r} has the rank 0; lora needs at least 1")
        if self.kind != "parallel" and ">" in pattern:
            raise UserError(
                f"adapters.places: {pattern!r} spans two layers, which adapters.kind = 'parallel' "
                f"can do and {self.kind!r} cannot"
            )
        return pattern, rank


def wrap(model: nn.Module, kind: str = "none", places=(), init: str = "zero") -> nn.Module:
    """The model with adapters; the arguments are the fields of `Adapters`.

    Args:
      model: as `fedlite.models.build` makes it. The result serves wherever it does: it has the
        same `widths`, and the adapters' unit axes derive like all others.
      kind: one of `KINDS`; "none" returns the model as it is.
      places: pairs (pattern, rank).
      init: one of `INITS`.

    Raises:
      UserError: an argument is bad. A pattern that matches no submodule, or one that an adapter
        does not fit, is refused when the parameters' shapes are first asked for.
    """
    adapters = Adapters(kind, places, init)
    if kind == "none":
        return model
    return Adapted(model, adapters, model.widths)


class Adapted(nn.Module):
    """A backbone with adapters; see `wrap`.

    Attributes:
      backbone: a model of `fedlite.models`.
      adapters: what is added to it.
      widths: of the backbone.
      convolution: replaces that of a backbone which has the choice; "" leaves it.
    """

    backbone: nn.Module
    adapters: Adapters
    widths: FrozenDict[str, int]
    convolution: str = ""

    @property
    def normalization(self) -> str:
        """The backbone's."""
        return getattr(self.backbone, "normalization", "none")

    @property
    def reads_mask(self) -> bool:
        """Whether the backbone leaves padded examples out of its statistics."""
        return getattr(self.backbone, "reads_mask", False)

    def output_frames(self, frames):
        """Of a backbone that reads speech: see `fedlite.models.conformer.Conformer`."""
        return self.backbone.output_frames(frames)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, **options) -> jax.Array:
        """The backbone's output with every branch added in; `options` are for the backbone."""
        changes = {}
        if self.convolution and hasattr(self.backbone, "convolution"):
            changes["convolution"] = self.convolution
        # In this module's own scope the backbone's parameters keep their paths.
        backbone = self.backbone.clone(widths=self.widths, parent=self.scope, **changes)
        branches = _Branches(self.adapters, self.scope)
        with nn.intercept_methods(branches.intercept), compact.within_interceptors():
            y = backbone(x, train=train, **options)
        branches.check()
        return y


class _Branches:
    """Adds the branches during one call of the backbone."""

    def __init__(self, adapters: Adapters, scope: Scope):
        self._adapters, self._scope = adapters, scope
        self._depth = len(scope.path)
        self._seen: list[str] = []
        self._used: set[int] = set()
        # Of spans that have begun: input, rank and path of the first layer by path of the last.
        self._open: dict[str, tuple[jax.Array, int, str]] = {}

    def intercept(self, call, args, kwargs, context):
        """Runs a submodule's method; adds a branch to `__call__` where a pattern matches."""
        names = context.module.path[self._depth :]
        path = "/".join(names)
        if context.method_name != "__call__" or not names or names[0] == _SCOPE:
            return call(*args, **kwargs)
        self._seen.append(path)
        x, branch = args[0], None
        for index, (pattern, rank) in enumerate(self._adapters.places):
            first, _, last = pattern.partition(">")
            if re.fullmatch(first, path):
                self._used.add(index)
                if last:
                    self._open["/".join((*names[:-1], last))] = x, rank, path
                else:
                    branch = x, rank, path
                break
        # A branch is added to a convolution, not to the maximum over it.
        adds = bool(branch) or path in self._open
        pool = context.module.pool if adds and isinstance(context.module, layers.Conv) else 1
        y = call(*args, **kwargs) if pool == 1 else call(*args, **kwargs, pooled=False)
        if branch:
            source, rank, name = branch
            y = y + self._branch(name, context.module, source, y, rank)
        if path in self._open:
            source, rank, name = self._open.pop(path)
            y = y + self._branch(name, None, source, y, rank)
        return y if pool == 1 else convolution.max_pool(y, pool)

    def check(self):
        """Refuses patterns that matched nothing, and spans that did not end."""
        shown = ", ".join(self._seen[:20]) + (", ..." if len(self._seen) > 20 else "")
        for index, (pattern, _) in enumerate(self._adapters.places):
            if index not in self._used:
                raise UserError(
                    f"adapters.places: the pattern {pattern!r} matches the whole path of no "
                    f"submodule, or an earlier one always does; the model has {shown}"
                )
        for last, (_, _, first) in self._open.items():
            raise UserError(
                f"adapters.places: no {last!r} is called after {first!r}; the model has {shown}"
            )

    def _branch(self, path: str, module: nn.Module | None, x, y, rank: int) -> jax.Array:
        """A(x), or A(y) in series, in the shape and type of y."""
        for value in (x, y):
            if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
                raise UserError(f"adapters.places: {path!r} does not map floats to floats")
        scope = self._scope
        for name in (_SCOPE, *path.split("/")):
            scope = scope.push(name, reuse=True)
        kind, last = self._adapters.kind, _LAST[self._adapters.init]
        if isinstance(module, layers.Conv) and kind != "series":
            return _convolutions(scope, module, x, y, rank, kind, last)
        dense = isinstance(module, nn.Dense | nn.DenseGeneral)
        if kind == "lora" and not dense:
            raise UserError(
                f"adapters.places: lora changes a kernel, but {path!r} is a "
                f"{type(module).__name__}; name convolutions and dense layers"
            )
        general = isinstance(module, nn.DenseGeneral)
        outputs = len(_tuple(module.features)) if general else 1
        inputs = len(_tuple(module.axis)) if general else 1
        if kind == "series":
            x, inputs = y, outputs
        if x.shape[: x.ndim - inputs] != y.shape[: y.ndim - outputs]:
            raise UserError(
                f"adapters.places: {path!r} maps {list(x.shape)} to {list(y.shape)}, so no branch "
                "can stand beside it; name convolutions, dense layers, or blocks that keep shapes"
            )
        return _dense(scope, x, y, (inputs, outputs), rank, kind, last)


def _convolutions(scope: Scope, module: layers.Conv, x, y, rank: int, kind: str, last):
    conv = functools.partial(
        layers.Conv, use_bias=False, implementation=module.implementation, dtype=y.dtype.name
    )
    strides, features = module.strides, y.shape[-1]
    if kind == "lora":
        x = conv(
            rank,
            module.kernel_size,
            strides,
            module.padding,
            kernel_init=_FIRST,
            parent=scope.push("down", reuse=True),
        )(x)
        strides = (1, 1)
    elif module.padding == "VALID":
        # The middle of each window: what a 1x1 window reads where nothing is padded.
        ends = [
            (size // 2, size // 2 + (count - 1) * stride + 1)
            for size, count, stride in zip(module.kernel_size, y.shape[1:3], strides)
        ]
        x = x[:, slice(*ends[0]), slice(*ends[1])]
    one = functools.partial(conv, kernel_size=(1, 1))
    if not rank:
        return one(features, strides=strides, kernel_init=last, parent=scope)(x)
    if kind != "lora":
        down = scope.push("down", reuse=True)
        x = nn.relu(one(rank, strides=strides, kernel_init=_FIRST, parent=down)(x))
    return one(features, kernel_init=last, parent=scope.push("up", reuse=True))(x)


def _dense(scope: Scope, x, y, axes: tuple[int, int], rank: int, kind: str, last):
    inputs, outputs = axes
    shape = y.shape[y.ndim - outputs :]
    dense = functools.partial(
        nn.DenseGeneral,
        use_bias=bool(rank) and kind != "lora",
        dtype=y.dtype,
        dot_general=layers.contract,
    )
    if rank:
        down = scope.push("down", reuse=True)
        x = dense(rank, axis=tuple(range(-inputs, 0)), kernel_init=_FIRST, parent=down)(x)
        x = x if kind == "lora" else nn.relu(x)
        scope, inputs = scope.push("up", reuse=True), 1
    # Flat outputs: the last axis of a kernel without a bias is what `UnitAxes` takes for them.
    axis = tuple(range(-inputs, 0))
    x = dense(math.prod(shape), axis=axis, kernel_init=last, parent=scope)(x)
    return x.reshape(*x.shape[:-1], *shape)


def _tuple(value) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
