"""`AutoencoderKLHunyuanVideo`: short clips whole and by convolutions that are fast on a CPU, others in diffusers' tiles.

diffusers cuts clips of more than 16 frames, and frames of more than 256 pixels, into overlapping tiles and blends them, to
save memory: the published autoencoder is used so, and the stock pipeline makes the same pixels. The tiny one (its
convolutions are folded) was trained on whole clips and goes without.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
    HunyuanVideoCausalConv3d,
    HunyuanVideoResnetBlockCausal3D,
    HunyuanVideoUpsampleCausal3D,
)

from flgbench.models.cpu_convolutions import convolve_folded, upsample_and_convolve


class FoldedHunyuanConv3d(HunyuanVideoCausalConv3d):
    """`HunyuanVideoCausalConv3d` whose time taps are folded into the channels of a 2-D convolution."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if any(self.time_causal_padding):
            hidden_states = F.pad(hidden_states, self.time_causal_padding, mode=self.pad_mode)
        return convolve_folded(self.conv, hidden_states)


class SubPixelUpsample(HunyuanVideoUpsampleCausal3D):
    """`HunyuanVideoUpsampleCausal3D` by two in time and space, whose repeated samples are never made."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return upsample_and_convolve(self.conv.conv, hidden_states)


class FoldedResnetBlock(HunyuanVideoResnetBlockCausal3D):
    """`HunyuanVideoResnetBlockCausal3D` that leaves the channels last, as folded convolutions give and take them."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        found = self.conv1(self.nonlinearity(self.norm1(hidden_states)))
        found = self.conv2(self.dropout(self.nonlinearity(self.norm2(found))))
        return found + (hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states))


def fold_convolutions(vae: AutoencoderKLHunyuanVideo) -> AutoencoderKLHunyuanVideo:
    """Switch every causal convolution of `vae` to a form that is fast on a CPU, in place. State dicts are unchanged."""
    for module in vae.modules():
        if isinstance(module, HunyuanVideoCausalConv3d):
            module.__class__ = FoldedHunyuanConv3d
        elif isinstance(module, HunyuanVideoResnetBlockCausal3D):
            module.__class__ = FoldedResnetBlock
        elif isinstance(module, HunyuanVideoUpsampleCausal3D) and tuple(module.upsample_factor) == (2, 2, 2):
            module.__class__ = SubPixelUpsample
    return vae


def is_folded(vae: AutoencoderKLHunyuanVideo) -> bool:
    return isinstance(vae.encoder.conv_in, FoldedHunyuanConv3d)


def encode(vae: AutoencoderKLHunyuanVideo, pixels: torch.Tensor) -> torch.Tensor:
    """Scaled posterior mode (B, z, T', H', W') of pixels (B, 3, T, H, W) in [-1, 1].

    The first latent frame is that of the first frame alone. The autoencoder's group norms look at all frames, so that of
    the whole clip would differ a little from what the model is given at sampling.
    """
    parts = [pixels[:, :, :1], pixels] if pixels.shape[2] > 1 else [pixels]
    whole = is_folded(vae)
    modes = [vae.quant_conv(vae.encoder(p)).chunk(2, dim=1)[0] if whole else vae.encode(p).latent_dist.mode() for p in parts]
    first, *rest = modes
    latents = torch.cat([first, *(r[:, :, 1:] for r in rest)], dim=2)
    return latents * vae.config.scaling_factor


def decode(vae: AutoencoderKLHunyuanVideo, latents: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, T, H, W) in [-1, 1] of scaled latents."""
    latents = latents / vae.config.scaling_factor
    pixels = vae.decoder(vae.post_quant_conv(latents)) if is_folded(vae) else vae.decode(latents).sample
    return pixels.clamp(-1, 1)
