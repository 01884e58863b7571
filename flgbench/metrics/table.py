"""What every quality metric is called, measures and how to read it. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricInfo:
    """`higher_is_better` is None where both tails are bad, or where the number only describes.

    `target` is the value a perfect clip (for set metrics: a perfect set) gets, None where there is no such number.
    """

    unit: str
    higher_is_better: bool | None
    description: str
    target: float | None


# The columns of the tidy results table, one row a number.
COLUMNS = (
    "run",
    "cell",
    "method",
    "family",
    "scale",
    "seed",
    "condition",
    "sample",
    "metric",
    "value",
    "unit",
    "higher_is_better",
    "status",
    "reason",
)

METRICS: dict[str, MetricInfo] = {
    "joint": MetricInfo("share", True, "presence, colour, shape, direction and second object all right: the headline", 1.0),
    "presence": MetricInfo("share", True, "main object found in every frame with 0.4 to 2 times its true area", 1.0),
    "colour": MetricInfo(
        "share", True, "main object's core has the true palette colour (RGB distance <= 60) in >= 90 % of frames", 1.0
    ),
    "shape": MetricInfo("share", True, "true silhouette fits best, with IoU >= 0.5, both before and after the turn", 1.0),
    "direction": MetricInfo("share", True, "moved within 20 degrees of the caption's direction between frames 0 and 8", 1.0),
    "turn_error": MetricInfo("px", False, "centroid error at frame 8, the last frame that is fully determined", 0.0),
    "motion_ratio": MetricInfo("ratio", None, "length of the generated path over the true one, in steps of 4 frames", 1.0),
    "missing_frames": MetricInfo(
        "share", False, "frames in which the main object is not found; they are never imputed", 0.0
    ),
    "flow_ratio": MetricInfo(
        "ratio", None, "fastest 5 % of optical flow over the truth's; describes only: jitter raises it", 1.0
    ),
    "interpolation_ratio": MetricInfo(
        "ratio", None, "frames against the mean of their neighbours, over the truth's; blur and standstill lower it", 1.0
    ),
    "first_frame_ssim": MetricInfo("similarity", True, "structural similarity of the first frame and the given one", 1.0),
    "area_drift": MetricInfo("octaves", False, "change of the main object's area from frames 1-5 to 12-16, |log2|", 0.0),
    "colour_drift": MetricInfo(
        "RGB distance", False, "change of the main object's core colour from frames 1-5 to 12-16", 0.0
    ),
    "first_frame_psnr": MetricInfo("dB", True, "first frame against the given one (58.9 dB when identical)", None),
    "sharpness_ratio": MetricInfo("ratio", None, "edge response of the main object over that of the true object", 1.0),
    "flicker": MetricInfo("grey levels", False, "mean absolute second time difference of background luminance", 0.0),
    "second_present": MetricInfo(
        "share", True, "an object besides the main one, in whatever hue, is seen in one of the last 3 frames", 1.0
    ),
    "second_colour": MetricInfo(
        "share", True, "it is there and its core has one palette colour, another than the main one's, nearly always", 1.0
    ),
    "observed_turn": MetricInfo("class", None, "turn seen after frame 8 (index into shapes.TURNS)", None),
    "observed_side": MetricInfo("class", None, "side the second object came from (index into shapes.SIDES)", None),
    "observed_entry": MetricInfo("class", None, "time it came in (index into shapes.ENTRY_FRAMES)", None),
    "observed_colour2": MetricInfo("class", None, "its colour (index into shapes.COLOURS)", None),
    "observed_shape2": MetricInfo("class", None, "its shape, if it was ever in full view (shapes.SHAPES)", None),
}

# Of clips with a sound only: one value a clip.
SOUNDING: dict[str, MetricInfo] = {
    "audio_correlation": MetricInfo(
        "correlation",
        True,
        "main object's size in every frame with the one that the sound asks for; 0 if it keeps still",
        1.0,
    ),
    "audio_gain": MetricInfo("ratio", None, "how much the size changes over how much the sound asks for (slope)", 1.0),
    "audio_lag": MetricInfo(
        "frames", None, "by how many frames the size is behind the sound, where their correlation is highest", 0.0
    ),
}

# By trained judges; they too give one value a clip. `teacher_psnr` needs the reference's clips beside a cell's own.
JUDGED: dict[str, MetricInfo] = {
    "named_all": MetricInfo(
        "share", True, "a classifier trained on clips names shape, colour, size, direction, speed and background right", 1.0
    ),
    **{
        f"named_{factor}": MetricInfo("share", True, f"the classifier names the {factor} right", 1.0)
        for factor in ("shape", "colour", "size", "direction", "speed", "background")
    },
    "clip_alignment": MetricInfo(
        "cosine",
        True,
        "five frames and the caption, by a CLIP trained on captions and frames; motion is nothing to it",
        None,
    ),
    "first_frame_lpips": MetricInfo("distance", False, "LPIPS (AlexNet) of the first frame and the given one", 0.0),
    "teacher_psnr": MetricInfo(
        "dB",
        None,
        "whole clip against the reference's from the same noise; a method that matches distributions owes none",
        None,
    ),
}

SET_METRICS: dict[str, MetricInfo] = {
    "hidden_tv_turn": MetricInfo("share", False, "total variation between the turns seen and their law", 0.0),
    "hidden_tv_side": MetricInfo("share", False, "total variation between the entry sides seen and their law", 0.0),
    "hidden_tv_entry": MetricInfo("share", False, "total variation between the entry times seen and their law", 0.0),
    "turn_diversity": MetricInfo(
        "ratio", True, "how often two seeds of one condition turn differently, over what the law makes of it", 1.0
    ),
    "vendi": MetricInfo("ratio", None, "effective number of different clips, over that of as many real ones", 1.0),
    "recall": MetricInfo("share", True, "real clips within reach of a generated one; as many of both, from 128 on", None),
    "coverage": MetricInfo(
        "share", True, "real clips with a generated one within their reach; as many of both, from 128 on", None
    ),
    "precision": MetricInfo(
        "share", None, "generated clips within reach of a real one; also near 1 after a collapse, so never alone", None
    ),
    "mmd": MetricInfo("squared distance", False, "unbiased RBF-MMD^2 to real clips; it can be below 0", 0.0),
    "frechet": MetricInfo(
        "squared distance",
        False,
        "Frechet distance (torchmetrics) of the classifier's 16 features to real clips'; from 256 on",
        0.0,
    ),
    "kernel": MetricInfo(
        "squared distance", False, "kernel distance (torchmetrics' KID) of the same features; it can be below 0", 0.0
    ),
    "mmd_p": MetricInfo("p-value", None, "permutation p-value of the MMD; small means: told apart from real", None),
}

# What can be told of clips without a known truth: those of a suite of images and prompts. They give one value a clip, as
# do `first_frame_psnr`, `first_frame_ssim` and `first_frame_lpips` there.
WITHOUT_TRUTH: dict[str, MetricInfo] = {
    "clip_similarity": MetricInfo("cosine", True, "five frames and the prompt, by OpenAI's CLIP ViT-L/14", None),
    "sharpness_kept": MetricInfo(
        "ratio", None, "edge response of the frames behind the first over the given image's; noise raises it", 1.0
    ),
    "luminance_flicker": MetricInfo(
        "grey levels", None, "second time difference of the luminance of an 8 x 8 grid; motion raises it too", None
    ),
    "flow_speed": MetricInfo(
        "px a frame", None, "fastest 5 % of optical flow; describes only: 0 is a frozen clip, jitter raises it", None
    ),
    "interpolation_error": MetricInfo(
        "grey levels", None, "frames against the mean of their neighbours; blur and standstill lower it", None
    ),
}

ALL_METRICS = METRICS | SOUNDING | JUDGED | SET_METRICS | WITHOUT_TRUTH
