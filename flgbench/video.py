"""Clips as MP4 files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

# Nearly lossless: compression would change what is scored. With x264's macroblock tree the same clip gives other bytes each
# time on processors with AVX-512.
CODEC = {"codec": "libx264", "crf": "4", "mbtree": "0", "pix_fmt": "yuv420p"}


def write_mp4(path: Path, video: np.ndarray, fps: int, sound: np.ndarray | None = None) -> None:
    """`video` (T, H, W, 3) uint8 as H.264; the whole file or none.

    With `sound` (S,) float32 in [-1, 1] at 16 kHz also an AAC track, as long as the sound.
    """
    import av

    from flgbench.data.sound import RATE

    partial = path.with_name(f".{path.stem}-{os.getpid()}.partial.mp4")  # the name tells PyAV the container
    try:
        with av.open(str(partial), "w") as container:
            stream = container.add_stream(CODEC["codec"], rate=fps, options={k: CODEC[k] for k in ("crf", "mbtree")})
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = video.shape[1:3]
            stream.pix_fmt = CODEC["pix_fmt"]
            track = None if sound is None else container.add_stream("aac", rate=RATE, layout="mono")
            for frame in video:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
            if track is not None and sound is not None:
                wave = np.ascontiguousarray(sound.clip(-1, 1), np.float32)[None]
                heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                heard.sample_rate, heard.pts = RATE, 0  # with a time the container says what the encoder put before it
                container.mux([*track.encode(heard), *track.encode()])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
