"""Make the clips of one cell: denoise with the student or teacher, or let a control generate them; decode; store uint8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flgbench.card import attention_backend, card
from flgbench.contracts import EvaluationBatch
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.errors import StageFailure
from flgbench.models.flops import pass_flops
from flgbench.plan import Step
from flgbench.registry import family_of, resolve
from flgbench.sampling import SamplerSettings, build_cache, generate
from flgbench.steps.loading import TEST, evaluation_factors, identities, load_clips, load_denoiser, true_outcomes
from flgbench.store import Store, write_json

CLIPS_AT_ONCE = 4  # on a CPU more do not fit its caches, and each clip takes longer


def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    settings = step.settings
    split = settings.get("split", TEST)
    model = load_denoiser(step, store, "student")
    data = load_clips(store.path(step.inputs["data"]))
    ids = identities(settings["conditions"], settings["repeated_conditions"])
    factors = evaluation_factors(settings["conditions"], split)
    first_frames, captions = shapes.render(factors)[:, 0], captions_of(factors)
    sampler = SamplerSettings.model_validate(settings["sampler"]) if "sampler" in settings else None
    cache = build_cache(model, sampler) if sampler else None
    if sampler is None:
        preset = resolve_family_preset(step)
        baseline = resolve(settings["baseline"])(preset)
    videos, nfe = [], 0
    for start in range(0, len(ids), CLIPS_AT_ONCE):
        chosen = ids[start : start + CLIPS_AT_ONCE]
        index = torch.tensor([c for c, _ in chosen])
        condition = data.condition.select(index)
        if sampler is None:
            truth = shapes.render(true_outcomes(chosen, split))
            batch = EvaluationBatch(condition, first_frames[index], truth, chosen)
            videos.append(baseline.generate(model, batch))
        else:
            latents, nfe = generate(model, condition, chosen, sampler, cache=cache)
            check_finite(latents, chosen)
            videos.append(model.decode(latents))
        store.event(step.key, "progress", fraction=min(1.0, (start + CLIPS_AT_ONCE) / len(ids)))
    save_file({"video": torch.cat(videos).contiguous()}, folder / "videos.safetensors")
    write_json(folder / "identities.json", ids)
    attention = attention_backend(model, data.condition) if sampler else ""
    told = card(first_frames, captions, len(ids), sampler, nfe, attention, str(model.dtype).removeprefix("torch."))
    facts = {"nfe": nfe, "parameters": model.n_parameters, "blocks": len(model.blocks), "card": told}
    if sampler is None:
        return facts
    # Passes that a cache cut short were begun, so they count in nfe; its share says how much of them was computed.
    share = cache.computed_share if cache else 1.0
    flops = nfe * share * pass_flops(model, data.condition.select(slice(0, 1)))
    return facts | {"flops": round(flops), "computed_share": share}


def check_finite(latents: torch.Tensor, identities: list[tuple[int, int]]) -> None:
    """Raise StageFailure for latents (B, ...) that hold NaN or infinity: as pixels they would pass for a clip."""
    bad = [who for who, clip in zip(identities, latents, strict=True) if not torch.isfinite(clip).all()]
    if bad:
        told = ", ".join(f"condition {c} sample {s}" for c, s in bad)
        raise StageFailure("NaN", f"the sampled latents are not finite ({told})")


def resolve_family_preset(step: Step):
    return family_of(step.settings).preset(step.settings["scale"])
