"""Sounds and what they drive: procedural clips, mel frames in closed form, files by stated rules, measures from pixels."""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from scipy.io import wavfile

from flgbench.data import mel, shapes, sound, sound_file
from flgbench.data.silhouettes import coverage
from flgbench.data.sound_file import read_sound, read_track
from flgbench.errors import UsageError
from flgbench.metrics.alignment import follows
from flgbench.metrics.selftest import check_sound, uncaught
from flgbench.metrics.truth import METRICS, SOUNDING, measure

SAMPLES = shapes.FRAMES * sound.FRAME_SAMPLES
SECONDS = np.arange(SAMPLES) / sound.RATE


def tone(frequency: float, amplitude: float = 0.5, rate: int = sound.RATE, samples: int = SAMPLES) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)


# Procedural clips


def test_clips_are_those_without_sound_but_for_the_size() -> None:
    silent, sounding = shapes.draw_factors("test", range(6)), sound.draw_factors("test", range(6))
    for field in fields(shapes.Factors):
        assert np.array_equal(getattr(silent, field.name), getattr(sounding, field.name))
    growth = sounding.growth()
    assert growth.shape == (6, shapes.FRAMES) and growth.min() >= 1 and growth.max() <= 1 + sound.GROWTH
    assert (growth.std(1) > 0.03).all()  # every sound asks for something
    area = (shapes.masks(sounding)[0].sum((2, 3)) / shapes.masks(silent)[0].sum((2, 3))).numpy()
    np.testing.assert_allclose(area, growth**2, rtol=0.04)  # sprites without growth are drawn on an eighth of a pixel


def test_sounds_depend_on_split_and_index_alone() -> None:
    some, more = sound.draw_factors("train", [5, 9]), sound.draw_factors("train", range(12))
    assert np.array_equal(sound.waveforms(some), sound.waveforms(more)[[5, 9]])
    assert np.array_equal(shapes.render(some), shapes.render(more)[[5, 9]])
    assert not np.array_equal(sound.waveforms(some), sound.waveforms(sound.draw_factors("test", [5, 9])))
    assert np.array_equal(some.select(np.array([1])).growth(), more.growth()[[9]])


def test_the_size_follows_what_can_be_heard() -> None:
    """The root mean square of the waveform itself, whatever its pitch and timbre."""
    factors = sound.draw_factors("validation", range(64))
    waves = sound.waveforms(factors)
    assert waves.shape == (64, SAMPLES) and np.abs(waves).max() <= 0.8
    heard, due = sound.loudness(waves), (factors.growth() - 1) / sound.GROWTH
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(heard, due, strict=True)) > 0.98
    assert np.abs(heard - due).mean() < 0.03


def test_first_frames_agree_with_the_beginning_of_the_sound() -> None:
    factors = sound.draw_factors("test", range(64))
    first = shapes.masks(factors)[0][:, 0].sum((1, 2)).numpy()
    own = shapes.masks(shapes.draw_factors("test", range(64)))[0][:, 0].sum((1, 2)).numpy()
    begins = sound.loudness(sound.waveforms(factors))[:, 0]
    assert np.corrcoef(np.sqrt(first / own), begins)[0, 1] > 0.98


def test_coverage_is_the_atlas_at_its_own_sizes() -> None:
    where = np.array([(shape, size) for shape in range(4) for size in range(3)])
    centre = np.full((12, 2), shapes.PATCH // 2) + np.array([3, 5]) / shapes.SUB
    drawn = coverage(where[:, 0], np.asarray(shapes.RADII)[where[:, 1]], centre, shapes.PATCH)
    atlas = shapes.atlas()[where[:, 0], where[:, 1], 5, 3].numpy()
    assert np.abs(drawn - atlas).max() < 0.15 and np.abs(drawn - atlas).mean() < 2e-3
    double = coverage(where[:, 0], 2 * np.asarray(shapes.RADII)[where[:, 1]], 2 * centre, 2 * shapes.PATCH)
    np.testing.assert_allclose(double.sum((1, 2)), 4 * drawn.sum((1, 2)), rtol=1e-3)


# Mel frames


def test_a_pure_tone_peaks_in_its_band() -> None:
    middles = mel.band_corners()[1:-1]
    assert 0.99 < mel.mel(1000.0) / 1000 < 1.01  # by its definition
    for band in (2, 10, 20, 30):
        frames = mel.mel_frames(tone(middles[band])[None])[0]
        assert (frames[2:-2].argmax(1) == band).all()


def test_silence_is_the_floor_and_full_power_is_one() -> None:
    assert (mel.mel_frames(np.zeros((1, SAMPLES), np.float32)) == 0).all()
    assert mel.mel_frames(np.full((1, 4 * mel.HOP), 1e-5)).max() == 0
    assert np.log10(mel.FLOOR) == -6


def test_bands_hold_the_power_of_the_sound() -> None:
    """A tone's mean square A^2 / 2; two tones far apart add up; half of the amplitude is a quarter."""
    low, high = tone(500.0, 0.5), tone(3000.0, 0.25)
    inner = slice(2, -2)  # windows that lie in the clip
    one, other, both = (mel.powers(w[None])[0, inner].sum(1) for w in (low, high, low + high))
    np.testing.assert_allclose(one, 0.5**2 / 2, rtol=0.01)
    np.testing.assert_allclose(one + other, both, rtol=0.01)
    np.testing.assert_allclose(mel.powers(0.5 * low[None])[0, inner].sum(1), one / 4, rtol=1e-6)
    weights = mel.filters().sum(0)
    frequencies = np.fft.rfftfreq(mel.WINDOW, 1 / sound.RATE)
    corners = mel.band_corners()
    np.testing.assert_allclose(weights[(frequencies >= corners[1]) & (frequencies <= corners[-2])], 1, atol=1e-12)


def test_frames_hear_only_what_is_near() -> None:
    click = np.zeros((1, SAMPLES))
    click[0, 10_000] = 1
    loud = np.flatnonzero(mel.mel_frames(click)[0].max(1))
    assert set(loud) <= {18, 19, 20, 21}  # 64 ms windows around 10 000 / 500


# Files


def written(path: Path, wave: np.ndarray, rate: int) -> Path:
    wavfile.write(path, rate, wave)
    return path


def test_a_file_of_the_right_kind_is_read_as_it_is(tmp_path: Path) -> None:
    wave = tone(440.0).astype(np.float32)
    assert np.array_equal(read_sound(written(tmp_path / "a.wav", wave, sound.RATE), SAMPLES), wave)
    as_integers = written(tmp_path / "b.wav", np.round(wave * 32767).astype(np.int16), sound.RATE)
    np.testing.assert_allclose(read_sound(as_integers, SAMPLES), wave, atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(rate: int, tmp_path: Path) -> None:
    count = round(SAMPLES * rate / sound.RATE)
    read = read_sound(written(tmp_path / "a.wav", tone(440.0, rate=rate, samples=count).astype(np.float32), rate), SAMPLES)
    np.testing.assert_allclose(read[200:-200], tone(440.0)[200:-200], atol=5e-3)


def test_what_is_too_high_is_taken_out_not_folded(tmp_path: Path) -> None:
    wave = tone(20_000.0, rate=48_000, samples=3 * SAMPLES).astype(np.float32)
    assert np.abs(read_sound(written(tmp_path / "a.wav", wave, 48_000), SAMPLES)[200:-200]).max() < 1e-3


def test_channels_are_averaged_and_lengths_fitted(tmp_path: Path) -> None:
    wave = tone(440.0).astype(np.float32)
    stereo = written(tmp_path / "a.wav", np.stack([wave, np.zeros_like(wave)], 1), sound.RATE)
    np.testing.assert_allclose(read_sound(stereo, SAMPLES), wave / 2, atol=1e-7)
    short = read_sound(written(tmp_path / "b.wav", wave[:100], sound.RATE), SAMPLES)
    assert np.array_equal(short[:100], wave[:100]) and not short[100:].any()
    long = read_sound(written(tmp_path / "c.wav", np.tile(wave, 3), sound.RATE), SAMPLES)
    assert np.array_equal(long, wave)


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    not_a_number = written(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), sound.RATE)
    for path, says in (
        (tmp_path / "none.wav", "no such file"),
        (tmp_path / "text.wav", "cannot be read"),
        (written(tmp_path / "empty.wav", np.zeros(0, np.float32), sound.RATE), "length is 0"),
        (written(tmp_path / "slow.wav", np.zeros(50, np.float32), 100), "100 samples a second"),
        (not_a_number, "no numbers"),
    ):
        with pytest.raises(UsageError, match=says) as refused:
            read_sound(path, SAMPLES)
        assert "\n" not in str(refused.value) and path.name in str(refused.value)


# Measures


def test_real_clips_follow_their_sound_and_are_right_in_all_else() -> None:
    factors = sound.draw_factors("validation", range(32))
    found = measure(shapes.render(factors), factors)
    assert set(found) == set(METRICS | SOUNDING)
    assert found["audio_correlation"].min() > 0.99 and found["joint"].mean() == 1
    np.testing.assert_allclose(found["audio_gain"], 1, atol=0.06)
    assert (found["audio_lag"] == 0).all()


def test_clips_without_sound_have_no_such_measure() -> None:
    silent = shapes.draw_factors("validation", range(2))
    assert set(measure(shapes.render(silent), silent)) == set(METRICS)
    assert set(measure(shapes.render(silent)[:0], silent.select(slice(0, 0)))) == set(METRICS)
    none = sound.draw_factors("validation", [])
    assert set(measure(shapes.render(none), none)) == set(METRICS | SOUNDING)


def test_the_measures_notice_what_they_are_there_for() -> None:
    findings = check_sound(24)
    assert uncaught(findings) == [] and sum(f.designated for f in findings) == 5
    at = {(f.corruption, f.measure): f for f in findings}
    assert all(f.seen == "blind" for (damage, _), f in at.items() if damage == "none")
    assert abs(at["another clip's sound", "audio_correlation"].value) < 0.3
    assert abs(at["sound not heard", "audio_correlation"].value) < 0.05
    assert abs(at["sound not heard", "audio_gain"].value) < 0.05
    assert at["2 frames late", "audio_lag"].value == pytest.approx(2, abs=0.1)
    assert np.isnan(at["sound not heard", "audio_lag"].value)


@pytest.mark.parametrize("lag", [-3, 0, 2])
def test_lag_gain_and_correlation_in_closed_form(lag: int) -> None:
    frames = np.arange(-10, 40)
    whole = 1 + 0.3 * np.exp(-((frames - 8) ** 2) / 8)
    due, size = (whole[None, 10 - shift : 27 - shift] for shift in (0, lag))
    found = follows(1 + 0.5 * (size - 1), due)
    assert found["audio_lag"] == [lag]
    if lag == 0:
        assert found["audio_gain"] == pytest.approx([0.5]) and found["audio_correlation"] == pytest.approx([1.0])


def test_nothing_is_made_up_where_nothing_is_seen() -> None:
    due = 1 + 0.3 * np.hanning(17)[None]
    lost = np.where(np.arange(17) < 9, due, np.nan)
    assert all(np.isnan(v).all() for v in follows(lost, due).values())
    silent = follows(due, np.ones_like(due))
    assert all(np.isnan(v).all() for v in silent.values())
    noise = 1 + 1e-3 * np.random.default_rng(0).standard_normal((1, 17))
    assert abs(follows(noise, due)["audio_correlation"][0]) < 0.05  # a size that keeps still follows nothing


def test_no_random_state_is_touched() -> None:
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    factors = sound.draw_factors("test", range(3))
    measure(shapes.render(replace(factors, sound=factors.sound[::-1])), factors)
    mel.mel_frames(sound.waveforms(factors))
    assert np.array_equal(before, np.random.get_state()[1]) and torch.equal(torch_before, torch.get_rng_state())


@pytest.mark.parametrize("picture, heard", [(0, 4000), (0, 0), (500, 0)])
def test_a_track_is_heard_from_the_first_picture_on(picture: int, heard: int, tmp_path: Path) -> None:
    """Times (ms) of the first picture and (samples) of the first sound differ: what is earlier is cut, not moved."""
    wave = tone(440.0).astype(np.float32)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("mpeg4", rate=8)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        track = container.add_stream("pcm_f32le", rate=sound.RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = sound.RATE, heard, Fraction(1, sound.RATE)
        container.mux(track.encode(frame))
        for i in range(17):
            shown = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            shown.time_base, shown.pts = Fraction(1, 1000), picture + 125 * i
            container.mux(video.encode(shown))
        container.mux([*track.encode(), *video.encode()])
    late = heard - picture * sound.RATE // 1000
    expected = np.concatenate([np.zeros(max(late, 0), np.float32), wave[max(-late, 0) :]])[:SAMPLES]
    found = read_track(tmp_path / "a.mkv", SAMPLES)
    assert np.array_equal(found[: len(expected)], expected) and not found[len(expected) :].any()


def test_of_a_long_track_only_what_is_needed_is_decoded(tmp_path: Path) -> None:
    wave = np.tile(tone(440.0).astype(np.float32), 20)
    path = written(tmp_path / "a.wav", wave, sound.RATE)
    decoded, _, _ = sound_file._decoded(path, SAMPLES)
    assert SAMPLES + sound.RATE <= decoded.shape[1] < len(wave) / 2
    assert np.array_equal(read_sound(path, SAMPLES), wave[:SAMPLES])
