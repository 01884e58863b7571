"""Make the clips of one cell: denoise with the student or teacher, or let a control generate them; decode; store uint8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flgbench import open_models
from flgbench.card import attention_backend, card
from flgbench.cells import Step
from flgbench.contracts import EvaluationBatch
from flgbench.data import shapes
from flgbench.errors import StageFailure
from flgbench.models.flops import pass_flops
from flgbench.registry import resolve
from flgbench.sampling import CLIPS_AT_ONCE, DECODED_AT_ONCE, SamplerSettings, build_cache, generate
from flgbench.steps.loading import TEST, clips_of, evaluated, identities, load_clips, load_denoiser, preset_of, true_outcomes
from flgbench.store import Store, write_json


def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    settings = step.settings
    split = settings.get("split", TEST)
    own = open_models.load(settings, preset_of(step)) if "weights" in settings else None
    model: Any = None if own else load_denoiser(step, store, "student")
    told = evaluated(step, store, settings["conditions"])
    conditions = told.condition or load_clips(store.path(step.inputs["data"])).condition
    ids = identities(settings["conditions"], settings["repeated_conditions"])
    first_frames, captions = told.first_frames, told.captions
    sampler = SamplerSettings.model_validate(settings["sampler"]) if "sampler" in settings else None
    cache = build_cache(model, sampler) if sampler else None
    if sampler is None:
        baseline = own or resolve(settings["baseline"])(preset_of(step))
    videos, nfe = [], 0
    at_once = CLIPS_AT_ONCE["cuda" if torch.cuda.is_available() else "cpu"]
    for start in range(0, len(ids), at_once):
        chosen = ids[start : start + at_once]
        index = torch.tensor([c for c, _ in chosen])
        condition = conditions.select(index)
        if sampler is None:
            truth = first_frames.new_empty(len(chosen), 0, *first_frames.shape[1:])
            if told.factors is not None:
                truth = shapes.render(true_outcomes(chosen, split, clips_of(step)))
            batch = EvaluationBatch(condition, first_frames[index], truth, chosen, [captions[c] for c, _ in chosen])
            videos.append(baseline.generate(model, batch))
        else:
            latents, nfe = generate(model, condition, chosen, sampler, cache=cache)
            check_finite(latents, chosen)
            videos += [model.decode(part) for part in latents.split(DECODED_AT_ONCE)]
        store.event(step.key, "progress", fraction=min(1.0, (start + at_once) / len(ids)))
    save_file({"video": torch.cat(videos).contiguous()}, folder / "videos.safetensors")
    write_json(folder / "identities.json", ids)
    attention = attention_backend(model, conditions.select(slice(0, 1))) if sampler else ""
    dtype = own.facts["dtype"] if own else str(model.dtype).removeprefix("torch.")
    made = card(first_frames, captions, len(ids), sampler, nfe, attention, dtype, told.inputs)
    if own:
        return {"nfe": own.facts["nfe"], "open": dict(own.facts), "card": made}
    facts = {"nfe": nfe, "parameters": model.n_parameters, "blocks": len(model.blocks), "card": made}
    if sampler is None:
        return facts
    # Passes that a cache cut short were begun, so they count in nfe; its share says how much of them was computed.
    share = cache.computed_share if cache else 1.0
    flops = nfe * share * pass_flops(model, conditions.select(slice(0, 1)))
    return facts | {"flops": round(flops), "computed_share": share}


def check_finite(latents: torch.Tensor, identities: list[tuple[int, int]]) -> None:
    """Raise StageFailure for latents (B, ...) that hold NaN or infinity: as pixels they would pass for a clip."""
    bad = [who for who, clip in zip(identities, latents, strict=True) if not torch.isfinite(clip).all()]
    if bad:
        told = ", ".join(f"condition {c} sample {s}" for c, s in bad)
        raise StageFailure("NaN", f"the sampled latents are not finite ({told})")
