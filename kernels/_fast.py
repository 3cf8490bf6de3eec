"""What a kernel says of itself to the plan (`intseg.plan`), which finds it by the name of its op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from ._heads import Scores, Shape

Array = NDArray[Any]
Rows = Callable[[int, int, Array], None]
"""Work on rows start to stop - 1, with scratch that no other thread uses."""


@dataclass(frozen=True)
class Work:
    """An op on rows [M, D] of its inputs and its output.

    bind     inputs and output -> the call
    scratch  bytes for one thread
    depth    products that an element of the output takes, for benchmarks
    """

    bind: Callable[[Sequence[Array], Array], Rows]
    scratch: int = 0
    depth: int = 0


@dataclass(frozen=True)
class Fast:
    """The kernel of an op.

    run        the op, as `intseg.ops` has it
    work       from params and attributes; none where it is no work on rows
    in_place   whether the output may lie over the last input
    tabulates  whether `run` and `work` take the definition first, to make a table of it
    """

    run: Callable[..., Array]
    work: Callable[..., Work] | None = None
    in_place: bool = False
    tabulates: bool = False


@dataclass(frozen=True)
class Attention:
    """A whole attention around one softmax.

    product  the op that ends it
    kernel   see `fused`
    shape    (tokens, heads, dim) -> sizes
    scores, values  (mult, shift, dim) -> requantization of either product; None where the registers do not hold it
    softmax  (params, attrs) -> the kernel's argument of that name
    """

    product: str
    kernel: Callable[..., None]
    shape: Callable[[int, int, int], Shape]
    scores: Callable[[Array, Array, int], Scores | None]
    values: Callable[[Array, Array, int], NDArray[Any] | None]
    softmax: Callable[[Mapping[str, Array], Mapping[str, Any]], Any]
