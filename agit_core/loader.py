"""Data loader: batches of the sample plan, decoded ahead of the training step by a few threads.

Decoding and copying release the GIL, so threads suffice and avoid pickling and shared memory. The loader is
stateless: its position is the step number, which the checkpoint stores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from agit_core.augment import augment, to_float
from agit_core.errors import BadInput
from agit_core.sampling import Domain, Item, SamplePlan

_PREFETCH_IMAGES = 64
"""Images announced to a source before they are read, when the plan has no shuffle windows."""


class ImageSource(Protocol):
    """Images of one domain by index; ``read`` must be thread-safe."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """Image ``index`` as uint8 (3, H, W), with H and W at least the training size."""
        ...


@runtime_checkable
class Prefetching(Protocol):
    """An :class:`ImageSource` that prefetches the reads announced to it."""

    def expect(self, index: int) -> None:
        """Announce one later :meth:`ImageSource.read` of this image, after those announced before."""
        ...

    def forget(self) -> None:
        """Withdraw all announced reads that have not happened."""
        ...


class Batch(NamedTuple):
    """One rank's share of a global batch: float32 (n, 3, S, S) in [-1, 1] per domain."""

    step: int
    epoch: int
    a: Tensor
    b: Tensor


class Loader:
    """Reads, augments and stacks the images of a plan.

    Args:
        sources: the images of domains ``a`` and ``b``; their lengths must match the plan's.
        image_size: side S of the square crops.
        flip: random horizontal flips.
        threads: decoding threads.
        ahead: batches decoded in advance.
        pin: use page-locked memory, for asynchronous copies to a GPU.

    Raises:
        BadInput: the sources have other lengths than the plan.
    """

    def __init__(
        self,
        sources: Mapping[Domain, ImageSource],
        plan: SamplePlan,
        image_size: int,
        flip: bool = True,
        threads: int = 2,
        ahead: int = 4,
        pin: bool = False,
    ) -> None:
        lengths = (len(sources["a"]), len(sources["b"]))
        if lengths != (plan.length_a, plan.length_b):
            raise BadInput(
                f"the data has {lengths[0]} and {lengths[1]} training images but the plan expects "
                f"{plan.length_a} and {plan.length_b}; prepare the data again"
            )
        self.sources = sources
        self.plan = plan
        self.image_size = image_size
        self.flip = flip
        self.threads = threads
        self.ahead = ahead
        self.pin = pin

    def batches(
        self, start_step: int, slots: range, stop_step: int | None = None
    ) -> Generator[Batch, None, None]:
        """Yield these slots' share of each batch from ``start_step`` up to ``stop_step`` (exclusive; None: endless)."""
        with ThreadPoolExecutor(self.threads, "decode") as pool:
            queue: deque[tuple[int, dict[Domain, _Pending]]] = deque()
            step = announced = start_step
            early = self.plan.rows or -(-_PREFETCH_IMAGES // max(1, len(slots)))
            try:
                while stop_step is None or step < stop_step or queue:
                    while len(queue) <= self.ahead and (stop_step is None or step < stop_step):
                        until = step + early + 1 if stop_step is None else min(step + early + 1, stop_step)
                        self._announce(range(announced, until), slots)
                        announced = until
                        queue.append((step, self._submit(pool, step, slots)))
                        step += 1
                    at, pending = queue.popleft()
                    a, b = (pending[domain].result() for domain in ("a", "b"))
                    yield Batch(at, self.plan.epoch_of(at), a, b)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for source in self.sources.values():
                    if isinstance(source, Prefetching):
                        source.forget()

    def _announce(self, steps: range, slots: range) -> None:
        for domain, source in self.sources.items():
            if isinstance(source, Prefetching):
                for step in steps:
                    for item in self.plan.items(step, domain, slots):
                        source.expect(item.index)

    def _submit(self, pool: ThreadPoolExecutor, step: int, slots: range) -> dict[Domain, _Pending]:
        pending: dict[Domain, _Pending] = {}
        for domain in self.sources:
            items = self.plan.items(step, domain, slots)
            images = torch.empty((len(items), 3, self.image_size, self.image_size), pin_memory=self.pin)
            reads = [
                pool.submit(self._read, domain, item, image)
                for item, image in zip(items, images, strict=True)
            ]
            pending[domain] = _Pending(images, reads)
        return pending

    def _read(self, domain: Domain, item: Item, out: Tensor) -> None:
        # convert per image, in the decoding thread: a whole batch would not fit into a core's cache
        image = self.sources[domain].read(item.index)
        to_float(augment(image, self.image_size, item.key, self.flip), out)


class _Pending(NamedTuple):
    """A batch that decoding threads are still filling."""

    images: Tensor
    reads: list[Future[None]]

    def result(self) -> Tensor:
        for read in self.reads:
            read.result()
        return self.images
