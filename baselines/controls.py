"""Controls without a denoiser: what perfect, autoencoder-limited, motionless and disordered clips score."""

from __future__ import annotations

import torch

from flgbench.contracts import Baseline, EvaluationBatch
from flgbench.metrics.corruptions import shuffle_behind_first
from flgbench.models.base import VideoModel


class RealClips(Baseline):
    """The true clips: the ceiling of every measure."""

    label = "real clips"
    kind = "control"
    changes = "not generated"
    needs_truth = True

    def generate(self, model: VideoModel, batch: EvaluationBatch) -> torch.Tensor:
        return batch.truth


class VAERoundTrip(Baseline):
    """The true clips encoded and decoded: what the autoencoder alone costs."""

    label = "VAE round trip"
    kind = "control"
    changes = "encoded and decoded"
    needs_truth = True

    def generate(self, model: VideoModel, batch: EvaluationBatch) -> torch.Tensor:
        return model.decode(model.encode_video(batch.truth))


class FrozenImage(Baseline):
    """The first frame repeated: consistent, sharp, and no video."""

    label = "frozen first frame"
    kind = "control"
    changes = "no motion"

    def generate(self, model: VideoModel, batch: EvaluationBatch) -> torch.Tensor:
        return batch.first_frames[:, None].repeat(1, self.preset.clip[0], 1, 1, 1)


class ShuffledFrames(Baseline):
    """The true frames behind the first in random order: everything is there but the motion."""

    label = "shuffled frames"
    kind = "control"
    changes = "frames in random order"
    needs_truth = True

    def generate(self, model: VideoModel, batch: EvaluationBatch) -> torch.Tensor:
        def drawn(condition: int, sample: int) -> torch.Generator:
            return torch.Generator().manual_seed(condition * 1_000 + sample)

        pairs = zip(batch.truth, batch.identities, strict=True)
        return torch.stack([shuffle_behind_first(clip, drawn(*identity)) for clip, identity in pairs])
