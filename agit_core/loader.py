"""Batches of the sample plan, decoded ahead of the step by a few threads.

Decoders and copies release the GIL, so threads are enough, and a thread needs neither pickling nor shared
memory. The loader holds no state: position is the step number, which the checkpoint has.
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

_EXPECTED = 64
"""Images that a source hears of before they are read, when the plan has no windows."""


class ImageSource(Protocol):
    """Images of one domain, by index; ``read`` is called from several threads."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """uint8 (3, H, W), H and W at least the training size."""
        ...


@runtime_checkable
class Foretold(Protocol):
    """An :class:`ImageSource` that wants to know early what will be read."""

    def expect(self, index: int) -> None:
        """One :meth:`ImageSource.read` of this image will come, after those expected before."""
        ...

    def forget(self) -> None:
        """What is still expected will not be read."""
        ...


class Batch(NamedTuple):
    """A rank's share of one global batch: float32 (n, 3, S, S) in [-1, 1] per domain."""

    step: int
    epoch: int
    a: Tensor
    b: Tensor


class Loader:
    """Reads, augments and stacks the images of a plan.

    Args:
        sources: the images of domains ``a`` and ``b``; their lengths must be the plan's.
        image_size: side S of the square crops.
        flip: random horizontal flips.
        threads: decoding threads.
        ahead: batches prepared before they are asked for.
        pin: page-locked memory, for asynchronous copies to a GPU.
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
        """Batches from ``start_step`` on, of these slots of the global batch."""
        with ThreadPoolExecutor(self.threads, "decode") as pool:
            queue: deque[tuple[int, dict[Domain, _Pending]]] = deque()
            step = told = start_step
            early = self.plan.rows or -(-_EXPECTED // max(1, len(slots)))
            try:
                while stop_step is None or step < stop_step or queue:
                    while len(queue) <= self.ahead and (stop_step is None or step < stop_step):
                        until = step + early + 1 if stop_step is None else min(step + early + 1, stop_step)
                        self._foretell(range(told, until), slots)
                        told = until
                        queue.append((step, self._submit(pool, step, slots)))
                        step += 1
                    at, pending = queue.popleft()
                    a, b = (pending[domain].result() for domain in ("a", "b"))
                    yield Batch(at, self.plan.epoch_of(at), a, b)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for source in self.sources.values():
                    if isinstance(source, Foretold):
                        source.forget()

    def _foretell(self, steps: range, slots: range) -> None:
        for domain, source in self.sources.items():
            if isinstance(source, Foretold):
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
        # image by image, in the thread that decoded it: a whole batch at once would not fit a core's cache
        image = self.sources[domain].read(item.index)
        to_float(augment(image, self.image_size, item.key, self.flip), out)


class _Pending(NamedTuple):
    """A batch whose images are being written into it."""

    images: Tensor
    reads: list[Future[None]]

    def result(self) -> Tensor:
        for read in self.reads:
            read.result()
        return self.images
