"""Videos: every frame, its time, its sound, its turn; flicker with and without smoothing."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from agit_core import Translator
from agit_core.errors import BadInput
from agit_core.translator import Result
from pipeline import storage
from pipeline.inference.translate import translate
from pipeline.inference.video import Smoother, translate_video
from tests.agit_core import models
from tests.pipeline.command import agit
from tests.pipeline.s3 import S3Server

FRAMES = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(models.write_model(tmp_path_factory.mktemp("model") / "m"))


def film(path: Path, height: int = 48, width: int = 64, sound: bool = True) -> Path:
    """A moving photograph of six frames at uneven times, with half a second of sound."""
    still = models.photograph(height, width + 4 * FRAMES)
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=25, options={"crf": "10", "g": "1"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        audio: Any = container.add_stream("aac", rate=44100, layout="mono") if sound else None
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(still[:, 4 * i : 4 * i + width]), format="rgb24"
            )
            frame.pts, frame.time_base = times()[i], Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            wave = np.sin(np.arange(22050) / 20).astype(np.float32)[None]
            tone = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 44100, 0
            container.mux(audio.encode(tone))
            container.mux(audio.encode(None))
    return path


def times() -> list[int]:
    """In milliseconds; a camera drops frames."""
    return [0, 40, 80, 160, 200, 400][:FRAMES]


def frames(path: Path) -> list[tuple[float, np.ndarray[Any, Any]]]:
    with av.open(str(path)) as container:
        return [(float(f.time or 0), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_every_frame_at_its_time_with_the_sound(tmp_path: Path, model: str, suffix: str) -> None:
    source = film(tmp_path / f"horse{suffix}")
    events: list[dict[str, Any]] = []
    done = translate(str(source), str(tmp_path / "out"), model, masks=True, progress=events.append)
    target = tmp_path / "out" / f"horse{suffix}"
    assert done["output"] == str(target)
    assert (done["translated"], done["failed"], done["notes"]) == (FRAMES, [], [])
    given, original = frames(target), frames(source)
    assert [round(1000 * moment) for moment, _ in given] == times()
    translator = Translator.load(model, device="cpu")
    for (_, shown), (_, frame) in zip(given, original, strict=True):
        expected = translator(frame).astype(int)
        # the codec halves the colours' resolution and the picture is half noise
        assert np.abs(shown - expected).mean() < 0.5 * np.abs(frame - expected).mean()
    masks = frames(tmp_path / "out" / f"horse{suffix}.mask{suffix}")
    assert len(masks) == FRAMES
    assert np.ptp(masks[0][1].astype(int), axis=2).max() < 12  # grey
    assert packets(source) == packets(target) != []
    assert events[-1]["done"] == FRAMES
    assert events[-1]["unit"] == "frames"


def test_webm_and_avi_are_written_too(tmp_path: Path, model: str) -> None:
    source = film(tmp_path / "horse.mp4")
    for suffix in (".webm", ".avi"):
        done = translate(str(source), str(tmp_path / f"zebra{suffix}"), model)
        assert done["translated"] == FRAMES
        assert len(frames(tmp_path / f"zebra{suffix}")) >= FRAMES
        # webm takes no AAC, which is noted
        assert [("sound" in note) for note in done["notes"]] == ([True] if suffix == ".webm" else [])


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
@pytest.mark.parametrize(
    ("size", "matrix", "full", "assumed"),
    [
        ((64, 48), 1, False, 1),
        ((64, 48), 5, True, 5),
        ((64, 48), 2, False, 5),
        ((1280, 720), 2, False, 1),  # players take large films that say nothing for BT.709
    ],
)
def test_colours_stay_what_they_are(
    tmp_path: Path, size: tuple[int, int], matrix: int, full: bool, assumed: int, suffix: str
) -> None:
    """A translation that changes nothing, shown as players show it."""
    source, target = tmp_path / "source.mp4", tmp_path / f"target{suffix}"
    width, height = size
    codes = np.empty((height * 3 // 2, width), np.uint8)
    codes[:height], codes[height : height * 5 // 4], codes[height * 5 // 4 :] = 100, 90, 170
    with av.open(str(source), "w") as container:
        video: Any = container.add_stream("libx264", rate=10, options={"crf": "1"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.colorspace, video.codec_context.color_range = matrix, 2 if full else 0
        frame = av.VideoFrame.from_ndarray(codes, format="yuv420p")
        frame.colorspace, frame.color_range = matrix, 2 if full else 0
        container.mux(video.encode(frame))
        container.mux(video.encode(None))

    class Same:
        def translate(self, image: torch.Tensor, direction: str) -> Result[torch.Tensor]:
            return Result(image, torch.zeros_like(image[:1]))

    translate_video(Same(), str(source), str(target), "a2b", 0.0, False, None)  # type: ignore[arg-type]

    def shown(path: Path) -> np.ndarray[Any, Any]:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            matrix = int(frame.colorspace)
            if matrix == 2:
                matrix = assumed
            rgb = frame.reformat(format="rgb24", src_colorspace={6: 5}.get(matrix, matrix))
            return rgb.to_ndarray()[height // 2, width // 2].astype(int)

    assert np.abs(shown(target) - shown(source)).max() <= 4


def test_odd_sides_and_turned_cameras(tmp_path: Path, model: str) -> None:
    odd = film(tmp_path / "even.mp4", 46, 58, sound=False)
    translate(str(odd), str(tmp_path / "out.mp4"), model)
    assert frames(tmp_path / "out.mp4")[0][1].shape == (46, 58, 3)
    turned = tmp_path / "turned.mp4"
    with av.open(str(odd)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    # real odd sides, which no camera has but a screen recorder does
    still = tmp_path / "odd.mkv"
    with av.open(str(still), "w") as container:
        video: Any = container.add_stream("libx264rgb", rate=25)
        video.width, video.height, video.pix_fmt = 57, 45, "rgb24"
        for picture in (models.photograph(45, 57, seed) for seed in range(2)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
    for suffix in (".mp4", ".avi", ".webm"):
        translate(str(still), str(tmp_path / f"odd-out{suffix}"), model)
        assert frames(tmp_path / f"odd-out{suffix}")[0][1].shape == (45, 57, 3)
    translate(str(turned), str(tmp_path / "upright.mp4"), model)
    shown = frames(tmp_path / "upright.mp4")[0][1]
    upright = np.ascontiguousarray(np.rot90(frames(odd)[0][1]))
    expected = Translator.load(model, device="cpu")(upright).astype(int)
    assert shown.shape == (58, 46, 3)
    assert np.abs(shown - expected).mean() < 0.8 * np.abs(shown[::-1, ::-1] - expected).mean()


def test_pixels_that_are_not_square_and_further_tracks(tmp_path: Path, model: str) -> None:
    """A recorder's film: two sound tracks, a sample aspect ratio, a container that is only read."""
    plain = film(tmp_path / "plain.mp4")
    source = tmp_path / "clip.mts"
    with av.open(str(plain)) as read, av.open(str(source), "w", format="mpegts") as target:
        video: Any = target.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(16, 11)
        sounds = [target.add_stream_from_template(read.streams.audio[0]) for _ in range(2)]
        for frame in read.decode(video=0):
            target.mux(video.encode(frame))
        target.mux(video.encode(None))
        read.seek(0)
        for packet in read.demux(audio=0):
            for sound in sounds if packet.dts is not None else ():
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts, copy.time_base, copy.stream = (
                    packet.pts,
                    packet.dts,
                    packet.time_base,
                    sound,
                )
                target.mux(copy)
    done = translate(str(source), str(tmp_path / "out"), model)
    assert done["output"] == str(tmp_path / "out" / "clip.mts.mp4")
    assert done["translated"] == FRAMES
    assert [note for note in done["notes"] if "1 more sound track" in note]
    with av.open(done["output"]) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)
    square = translate(str(source), str(tmp_path / "square.webm"), model)
    assert frames(tmp_path / "square.webm")[0][1].shape == (48, 94, 3)
    assert [note for note in square["notes"] if note.startswith("94 x 48 pixels")]


def test_what_is_no_video(tmp_path: Path, model: str) -> None:
    (tmp_path / "horse.mp4").write_bytes(b"no frames in here")
    with pytest.raises(BadInput, match="not a readable video"):
        translate(str(tmp_path / "horse.mp4"), str(tmp_path / "out"), model)
    assert not (tmp_path / "out").exists()
    film(tmp_path / "film.mp4")
    with pytest.raises(BadInput, match=r"smooth must lie in \[0, 1\)"):
        translate(str(tmp_path / "film.mp4"), str(tmp_path / "out"), model, smooth=1)
    with pytest.raises(BadInput, match="leave --batch out"):
        translate(str(tmp_path / "film.mp4"), str(tmp_path / "out"), model, batch=True)
    (tmp_path / "there.mp4").write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"there\.mp4 exists"):
        translate(str(tmp_path / "film.mp4"), str(tmp_path / "there.mp4"), model)
    assert (tmp_path / "there.mp4").read_bytes() == b"mine"


def test_a_film_that_is_cut_off_is_translated_as_far_as_it_goes(tmp_path: Path, model: str) -> None:
    whole = film(tmp_path / "film.mkv", sound=False).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 3 // 4])
    done = translate(str(tmp_path / "cut.mkv"), str(tmp_path / "out.mkv"), model)
    assert 1 <= done["translated"] < FRAMES
    assert len(frames(tmp_path / "out.mkv")) == done["translated"]


def test_object_storage(tmp_path: Path, model: str, s3: S3Server) -> None:
    source = film(tmp_path / "film.mp4")
    storage.upload_file(source, f"{s3.uri}/film.mp4")
    done = translate(f"{s3.uri}/film.mp4", f"{s3.uri}/out/", model)
    assert done["output"] == f"{s3.uri}/out/film.mp4"
    storage.download_file(done["output"], tmp_path / "back.mp4")
    assert len(frames(tmp_path / "back.mp4")) == FRAMES


def _flicker(strength: float, noise: float = 0.0) -> float:
    """Mean change from frame to frame of translations that flicker over a still (noisy) source."""
    generator = torch.Generator().manual_seed(0)
    still = torch.randint(60, 190, (3, 32, 32), generator=generator).float()
    smoother = Smoother(strength)
    shown = []
    for i in range(20):
        frame = still + noise * torch.randn(3, 32, 32, generator=generator)
        output = still + (20 if i % 2 else -20)
        mask = torch.full((1, 32, 32), 200 if i % 2 else 150)
        shown.append(smoother(frame.to(torch.uint8), output.to(torch.uint8), mask.to(torch.uint8))[0].float())
    later = torch.stack(shown[10:])
    return float((later[1:] - later[:-1]).abs().mean())


def test_smoothing_removes_flicker_where_nothing_moves() -> None:
    raw = _flicker(0)
    assert raw == pytest.approx(40)
    assert _flicker(0.8) < 0.2 * raw
    assert _flicker(0.8, noise=2) < 0.35 * raw  # a sensor's noise is no movement


def test_smoothing_brings_no_noise_of_the_source_back() -> None:
    """A generator paints the same whatever the sensor's noise: where the mask is 1, so does the video."""
    generator = torch.Generator().manual_seed(0)
    smoother = Smoother(0.8)
    background = torch.full((3, 16, 32), 100.0)
    for _ in range(12):
        frame = (background + 3 * torch.randn(3, 16, 32, generator=generator)).to(torch.uint8)
        output = frame.clone()
        output[:, :, :16] = 180
        mask = torch.zeros(1, 16, 32, dtype=torch.uint8)
        mask[:, :, :16] = 255
        shown, _ = smoother(frame, output, mask)
        assert (shown[:, :, :16].int() - 180).abs().max() <= 1
        assert torch.equal(shown[:, :, 16:], frame[:, :, 16:])  # the background is each frame's own


def test_smoothing_leaves_no_trail_behind_what_moves() -> None:
    """A bright square moves; where it was, the next frame shows the background's own translation at once."""
    smoother = Smoother(0.9)
    for i in range(6):
        frame = torch.full((3, 32, 64), 60, dtype=torch.uint8)
        frame[:, 8:24, 8 * i : 8 * i + 16] = 220
        output = 255 - frame
        mask = (frame[:1] > 100).to(torch.uint8) * 255
        shown, shown_mask = smoother(frame, output, mask)
        assert (shown.int() - output.int()).abs().max() <= 8  # of 160
        assert (shown_mask.int() - mask.int()).abs().max() <= 8


def test_without_smoothing_frames_are_the_translators_own() -> None:
    smoother = Smoother(0)
    for seed in range(3):
        picture = torch.from_numpy(models.photograph(16, 16, seed)).permute(2, 0, 1)
        output, mask = 255 - picture, picture[:1]
        shown, shown_mask = smoother(picture, output, mask)
        assert torch.equal(shown, output)
        assert torch.equal(shown_mask, mask)


def test_the_command_smooths(tmp_path: Path, model: str) -> None:
    film(tmp_path / "film.mp4")
    done = agit("translate", "film.mp4", "out.mp4", "--model", model, "--smooth", 0.8, "--json", cwd=tmp_path)
    assert done.status == 0, done.err
    assert done.answer["translated"] == FRAMES
    assert "translate: 6 frames" in done.err
