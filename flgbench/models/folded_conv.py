"""Run a Wan autoencoder's causal 3-D convolutions as 2-D ones.

The same weights give the same result (to rounding) from a faster kernel, see `cpu_convolutions`. State dicts are unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify

from flgbench.models.cpu_convolutions import convolve_folded

SMALL = 128 * 128  # pixels of a frame up to which two chunks of a clip fit any memory


class FoldedCausalConv3d(WanCausalConv3d):
    """`WanCausalConv3d` whose time taps are folded into the channels of a 2-D convolution."""

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        missing = self._padding[4]
        if cache_x is not None and missing > 0:
            x = torch.cat([cache_x, x], dim=2)
            missing -= cache_x.shape[2]
        if missing > 0:
            x = F.pad(x, (0, 0, 0, 0, missing, 0))
        return convolve_folded(self, x, (self._padding[2], self._padding[0]))


def fold_convolutions(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Switch every causal convolution of `vae` to the folded form, in place."""
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            module.__class__ = FoldedCausalConv3d
    return vae


def is_folded(vae: AutoencoderKLWan) -> bool:
    return isinstance(vae.encoder.conv_in, FoldedCausalConv3d)


def encode_in_two_chunks(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """Posterior mode (B, z, T', H', W') of pixels (B, 3, T, H, W), as `vae.encode(pixels).latent_dist.mode()`.

    Wan's own loop takes four frames at a time to save memory. Its caches hold for chunks of any length, so a short clip
    goes through in two: the first frame, and the rest.
    """
    vae.clear_cache()
    patches = patchify(pixels, vae.config.patch_size) if vae.config.patch_size else pixels
    parts = []
    for chunk in (patches[:, :, :1], patches[:, :, 1:]):
        if chunk.shape[2]:
            parts.append(vae.encoder(chunk, feat_cache=vae._enc_feat_map, feat_idx=[0]))
    vae.clear_cache()
    return vae.quant_conv(torch.cat(parts, dim=2)).chunk(2, dim=1)[0]


def decode_in_two_chunks(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, T, H, W) in [-1, 1], as `vae.decode(latents).sample`, in two chunks as above."""
    vae.clear_cache()
    x = vae.post_quant_conv(latents)
    parts = []
    for first, chunk in ((True, x[:, :, :1]), (False, x[:, :, 1:])):
        if chunk.shape[2]:
            parts.append(vae.decoder(chunk, feat_cache=vae._feat_map, feat_idx=[0], first_chunk=first))
    vae.clear_cache()
    pixels = torch.cat(parts, dim=2)
    return (unpatchify(pixels, vae.config.patch_size) if vae.config.patch_size else pixels).clamp(-1, 1)
