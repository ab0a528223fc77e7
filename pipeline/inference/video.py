"""Translation of a video file frame by frame, with optional temporal smoothing."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from agit_core import Translator
from agit_core.errors import BadInput
from pipeline import storage
from pipeline.inference.image_items import mask_name
from pipeline.inference.inputs import suffix_of

Progress = Callable[[dict[str, Any]], None]

MOVED = 8 / 255
"""Difference between frames, in [0, 1], that halves the smoothing; well above sensor noise."""
_CODECS = {".webm": ("libvpx-vp9", {"crf": "24", "b": "0"}), ".avi": ("mpeg4", {"q": "3"})}
_BT709, _BT601 = 1, 6
# FFmpeg's colour matrix codes, mapped to those of its converter
_MATRICES = {
    _BT709: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    _BT601: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
_USUAL_CODEC = ("libx264", {"crf": "18", "preset": "medium"})


class Smoother:
    """Exponential smoothing over time of a translation, where the source does not move.

    For frame ``a``, translation ``b`` and mask ``m``, the state ``s`` of each of ``b``, ``b - a`` and ``m`` follows
    ``s <- w s + (1 - w) x``. The weight ``w`` is ``strength`` where the frame is unchanged and falls to 0 where it
    moves, so that moving objects leave no trail. The output is ``s_b`` where the mask is 1, which removes the
    generator's noise, and ``a + s_(b-a)`` where it is 0, which keeps the background pixels of each frame.

    Args:
        strength: in [0, 1); 0 disables smoothing.
    """

    def __init__(self, strength: float) -> None:
        if not 0 <= strength < 1:
            raise BadInput(f"--smooth must lie in [0, 1), not {strength}")
        self.strength = strength
        self._frame: Tensor | None = None
        self._state = torch.empty(0)

    def __call__(self, frame: Tensor, output: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Smooth the next frame's output (3, H, W) and mask (1, H, W); all uint8."""
        source = frame.float() / 255
        translated = output.float() / 255
        now = torch.cat([translated, translated - source, mask.float() / 255])
        if self._frame is not None and self.strength:
            moved = (source - self._frame).abs().mean(0, keepdim=True)
            # averaged over a few pixels, so that single-pixel noise does not count as movement
            moved = F.avg_pool2d(moved[None], 5, 1, 2, count_include_pad=False)[0]
            weight = self.strength / (1 + (moved / MOVED) ** 2)
            now = weight * self._state + (1 - weight) * now
        self._frame, self._state = source, now
        picture, change, attended = now.split([3, 3, 1])
        picture = torch.lerp(source + change, picture, attended)
        smoothed = (torch.cat([picture, attended]).clamp(0, 1) * 255).round().to(torch.uint8)
        return smoothed[:3], smoothed[3:]


def translate_video(
    translator: Translator,
    source: str,
    target: str,
    direction: str,
    smooth: float,
    masks: bool,
    progress: Progress | None,
) -> dict[str, Any]:
    """Translate a video with its frame times and sound, and optionally write a video of its masks.

    Files appear only when complete; an interrupted video starts from the beginning. Damaged frames are left out.

    Returns:
        ``translated``: number of frames; ``failed``: ``name`` and ``reason`` of damaged ones; ``notes``.

    Raises:
        BadInput: not a video, or no readable frame in it.
    """
    smoother = Smoother(smooth)
    with tempfile.TemporaryDirectory(prefix="agit-video-") as folder:
        local = Path(folder) / f"in{suffix_of(source)}"
        if storage.is_remote(source):
            storage.download_file(source, local)
        else:
            local = storage.local_path(source)
        outputs = {target: Path(folder) / f"out{suffix_of(target)}"}
        if masks:
            outputs[mask_name(target)] = Path(folder) / f"mask{suffix_of(target)}"
        reader = _Reader(local, source)
        with contextlib.closing(reader):
            writers = [_Writer(path, reader) for path in outputs.values()]
            done = 0
            for image, moment in reader.frames(writers[0].mux_sound):
                result = translator.translate(image, direction)
                pictures = smoother(image, result.image, result.mask)
                for writer, picture in zip(writers, pictures, strict=False):
                    writer.write(picture, moment)
                done += 1
                if progress:
                    progress(reader.progress(done))
            if not done:
                raise BadInput(f"{source} contains no readable video frame")
            for writer in writers:
                writer.close()
        for uri, path in reversed(outputs.items()):
            storage.upload_file(path, uri)
    notes = list(writers[0].notes)
    if reader.damaged:
        notes.append(
            f"{reader.damaged} frames of {source} are damaged, and shown as far as they could be decoded"
        )
    return {"translated": done, "failed": reader.failed, "notes": notes}


class _Moment(NamedTuple):
    """Presentation time of a frame, in units of ``time_base`` seconds."""

    pts: int
    time_base: Fraction


class _Colours(NamedTuple):
    """Colour space in FFmpeg's codes: that of the source, or what players assume if it is unspecified."""

    matrix: int
    full_range: bool
    primaries: int
    transfer: int

    @classmethod
    def of(cls, frame: av.VideoFrame) -> _Colours:
        matrix = int(frame.colorspace)
        if matrix not in _MATRICES:
            matrix = _BT709 if frame.width >= 1280 or frame.height > 576 else _BT601
        full = int(frame.color_range) == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        return cls(matrix, full, int(frame.color_primaries), int(frame.color_trc))

    @property
    def range(self) -> ColorRange:
        return ColorRange.JPEG if self.full_range else ColorRange.MPEG

    def rgb(self, frame: av.VideoFrame) -> np.ndarray[Any, Any]:
        """Convert a frame to RGB, uint8 (H, W, 3)."""
        converted = frame.reformat(
            format="rgb24", src_colorspace=_MATRICES[self.matrix], src_color_range=self.range
        )
        return converted.to_ndarray()

    def frame(self, rgb: np.ndarray[Any, Any], pixel_format: str, width: int) -> av.VideoFrame:
        """Convert RGB, uint8 (H, W, 3), to a frame in this colour space, scaled to ``width``."""
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            width=width,
            format=pixel_format,
            dst_colorspace=_MATRICES[self.matrix],
            dst_color_range=self.range,
        )
        frame.colorspace, frame.color_range = self.matrix, self.range
        return frame

    def tag(self, codec: Any) -> None:
        """Declare the colour space of the frames from :meth:`frame` in the output stream."""
        codec.colorspace, codec.color_range = self.matrix, self.range
        codec.color_primaries, codec.color_trc = self.primaries, self.transfer


class _Reader:
    """Upright RGB frames of a video file; ``name`` is its name in messages."""

    def __init__(self, path: Path, name: str) -> None:
        try:
            self.container = av.open(str(path))
            self.stream = self.container.streams.video[0]
        except (av.error.FFmpegError, IndexError) as error:
            detail = getattr(error, "strerror", None) or "no video stream"
            raise BadInput(f"{name} is not a readable video ({detail})") from None
        self.stream.thread_type = "AUTO"
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self.sound = self.container.streams.audio[:1]
        kinds = (("video", "picture track"), ("audio", "sound track"), ("subtitles", "subtitle track"))
        self.notes = [
            f"{count} more {track}{'s' if count > 1 else ''} of {name} left out"
            for kind, track in kinds
            if (count := len(getattr(self.container.streams, kind)) - (kind != "subtitles")) > 0
        ]
        self.rotated = False
        self.damaged = 0
        """Frames that were decoded as far as could be."""
        self.failed: list[dict[str, str]] = []
        self.colours: _Colours | None = None
        """Colour space of the first frame; None until it is read."""
        self._began = time.monotonic()

    def close(self) -> None:
        self.container.close()

    def frames(self, mux_sound: Callable[[Any], None]) -> Iterator[tuple[Tensor, _Moment]]:
        """Yield each frame, uint8 (3, H, W), with its time; pass sound packets to ``mux_sound`` as they come."""
        number = 0
        for packet in self._packets():
            if packet.stream.type == "audio":
                mux_sound(packet)
                continue
            try:
                decoded = packet.decode()
            except av.error.FFmpegError as error:
                self.failed.append(
                    {"name": f"frame {number}", "reason": f"cannot be decoded: {error.strerror}"}
                )
                continue
            for frame in decoded:
                self.damaged += bool(frame.is_corrupt)
                moment = _Moment(number, 1 / Fraction(self.rate))
                if frame.pts is not None and frame.time_base:
                    moment = _Moment(frame.pts, frame.time_base)
                self.colours = self.colours or _Colours.of(frame)
                self.rotated = round(frame.rotation / 90) % 2 == 1
                pixels = np.rot90(self.colours.rgb(frame), round(frame.rotation / 90) % 4)
                yield torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), moment
                number += 1

    def _packets(self) -> Iterator[Any]:
        """Packets up to the first read error, such as the end of a truncated file."""
        try:
            yield from self.container.demux(self.stream, *self.sound)
        except av.error.FFmpegError as error:
            self.failed.append({"name": "the rest", "reason": f"cannot be read: {error.strerror}"})

    def progress(self, done: int) -> dict[str, Any]:
        rate = done / max(time.monotonic() - self._began, 1e-6)
        event: dict[str, Any] = {"done": done, "unit": "frames", "images_per_s": rate}
        total = self.stream.frames  # 0 if the container does not specify it
        return event | ({"total": total, "eta_s": max(0, total - done) / rate} if total else {})


class _Writer:
    """Output video file; its size is that of the first frame."""

    def __init__(self, path: Path, reader: _Reader) -> None:
        self.container = av.open(str(path), "w")
        self._reader = reader
        self.notes: list[str] = list(reader.notes)
        codec, options = _CODECS.get(path.suffix, _USUAL_CODEC)
        # Any: PyAV's type covers streams of all kinds
        self._stream: Any = self.container.add_stream(codec, rate=reader.rate, options=options)
        # MPEG-4 cannot signal full colour range
        self._limited = codec == "mpeg4"
        # neither VP9 nor the writer of its container keeps a sample aspect ratio
        self._square = codec == "libvpx-vp9"
        # MPEG-4 needs a constant frame rate; the others keep the source's time base and thus uneven frame times
        frames = 1 / Fraction(reader.rate)
        self._clock: Fraction = frames if codec == "mpeg4" else reader.stream.time_base or frames
        self._stream.time_base = self._stream.codec_context.time_base = self._clock
        self._last = -1
        self._sound: Any = None
        self._waiting: (
            list[Any] | None
        ) = []  # sound packets before the first frame; None once the file is open
        if reader.sound:
            try:
                self._sound = self.container.add_stream_from_template(reader.sound[0])
            except (av.error.FFmpegError, ValueError):
                self.notes.append(f"the sound is left out: {path.suffix} cannot hold it")

    def mux_sound(self, packet: Any) -> None:
        """Copy a packet of the source's sound without re-encoding."""
        if self._sound is None or packet.dts is None:
            return
        if self._waiting is not None:
            self._waiting.append(packet)
            return
        packet.stream = self._sound
        self.container.mux(packet)

    def write(self, picture: Tensor, moment: _Moment) -> None:
        """Append a frame, uint8 (3, H, W) or (1, H, W)."""
        array = picture.permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy()
        height, width = array.shape[:2]
        colours = self._reader.colours
        assert colours is not None
        if self._limited:
            colours = colours._replace(full_range=False)
        first = self._waiting is not None
        if first:
            if shape := self._reader.stream.sample_aspect_ratio:  # non-square pixels
                ratio = 1 / shape if self._reader.rotated else shape
                if self._square and ratio != 1:
                    width = max(2, 2 * round(width * ratio / 2))
                    self.notes.append(f"{width} x {height} pixels: this format has square ones only")
                elif not self._square:
                    self._stream.codec_context.sample_aspect_ratio = ratio
            self._stream.width, self._stream.height = width, height
            # yuv420p (half colour resolution) needs even sides; use yuv444p for odd ones if the codec supports it
            known = [kind.name for kind in self._stream.codec_context.codec.video_formats or []]
            even = height % 2 == 0 and width % 2 == 0
            self._stream.pix_fmt = "yuv420p" if even or "yuv444p" not in known else "yuv444p"
            colours.tag(self._stream.codec_context)
        frame = colours.frame(array, self._stream.pix_fmt, self._stream.width)
        # strictly increasing: encoders refuse two frames with the same time
        self._last = max(self._last + 1, round(moment.pts * moment.time_base / self._clock))
        frame.pts, frame.time_base = self._last, self._clock
        self.container.mux(self._stream.encode(frame))
        if first:
            waiting, self._waiting = self._waiting or [], None
            for packet in waiting:
                self.mux_sound(packet)

    def close(self) -> None:
        self.container.mux(self._stream.encode(None))
        self.container.close()
