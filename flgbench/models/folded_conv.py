"""Run a Wan autoencoder's causal 3-D convolutions as 2-D ones.

On a CPU torch's 3-D convolution is several times slower than its 2-D one, most of all at batch 1. A causal convolution
with k_t taps in time equals a 2-D convolution over k_t frames stacked as channels, so the same weights give the same
result (to rounding) from the fast kernel. State dicts are unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify

SMALL = 128 * 128  # pixels of a frame up to which two chunks of a clip fit any memory


class FoldedCausalConv3d(WanCausalConv3d):
    """`WanCausalConv3d` whose time taps are folded into the channels of a 2-D convolution."""

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        taps, stride = self.kernel_size[0], self.stride[0]
        missing = self._padding[4]
        if cache_x is not None and missing > 0:
            x = torch.cat([cache_x, x], dim=2)
            missing -= cache_x.shape[2]
        if missing > 0:
            x = F.pad(x, (0, 0, 0, 0, missing, 0))
        batch, channels, frames, height, width = x.shape
        steps = (frames - taps) // stride + 1
        x = x.permute(0, 2, 3, 4, 1)
        if taps > 1:
            x = torch.cat([x[:, k : k + stride * (steps - 1) + 1 : stride] for k in range(taps)], dim=-1)
        x = x.reshape(batch * steps, height, width, taps * channels).permute(0, 3, 1, 2)
        weight = self.weight.permute(0, 2, 1, 3, 4).reshape(self.out_channels, taps * channels, *self.kernel_size[1:])
        weight = weight.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(x, weight, self.bias, stride=self.stride[1:], padding=(self._padding[2], self._padding[0]))
        return y.permute(0, 2, 3, 1).reshape(batch, steps, *y.shape[2:], -1).permute(0, 4, 1, 2, 3)


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
