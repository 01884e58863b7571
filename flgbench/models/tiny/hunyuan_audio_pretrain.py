"""Make the tiny teacher that hears: adapters are trained on the tiny hunyuan teacher, which has to be there.

Resumes from the work folder, so an interrupted pretraining continues with the same command.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from flgbench.errors import UsageError
from flgbench.models.families import WanXFamily
from flgbench.models.hunyuan import Hunyuan
from flgbench.models.hunyuan_audio import HearingHunyuan
from flgbench.models.hunyuan_family import HunyuanFamily
from flgbench.models.tiny import hunyuan_audio
from flgbench.models.wanx import WanX
from flgbench.shipped import write_hashes


def load(folder: Path) -> HearingHunyuan:
    """The teacher in `folder`."""
    return HearingHunyuan.around(_plain()).with_transformer(folder / "transformer")


def pretrain(work: Path, processes: int) -> HearingHunyuan:
    """Train what is not trained yet in `work`, on one core, and return the teacher.

    Raises UsageError where the teacher without sound is not there, or is not the one that `work` was begun with.
    """
    work.mkdir(parents=True, exist_ok=True)
    begun, fingerprint = work / "plain.json", HunyuanFamily().fingerprint("tiny")
    if begun.exists() and json.loads(begun.read_text())["sha256"] != fingerprint:
        raise UsageError(f"--work {work}: was begun from another '{HunyuanFamily.name}' teacher: choose another folder")
    begun.write_text(json.dumps({"model": "hunyuan tiny", "sha256": fingerprint}))
    torch.set_num_threads(1)
    plain, guide = _plain(), WanXFamily().load("tiny")
    assert isinstance(guide, WanX)
    data = hunyuan_audio.encode_clips(plain, guide, hunyuan_audio.CLIPS, work / "sounding.safetensors")
    return hunyuan_audio.train(plain, data, work)


def start_from(weights: Path, work: Path) -> None:
    """Raises UsageError: this recipe continues in its work folder."""
    raise UsageError("--continue-from: this family's training continues in its --work folder; leave the option out")


def _plain() -> Hunyuan:
    model = HunyuanFamily().load("tiny")
    assert isinstance(model, Hunyuan)
    return model


def export(model: HearingHunyuan, work: Path, folder: Path) -> None:
    """Write the denoiser in fp16 (it is computed in fp32), with log, recipe and hashes."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    half = model.copy()
    half.transformer.half()
    half.save(partial / "transformer")
    config = partial / "transformer" / "config.json"
    kept = {name: value for name, value in json.loads(config.read_text()).items() if name != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n")
    for path in partial.rglob("*.safetensors"):
        path.chmod(0o644)
    recipe: dict[str, Any] = {
        "plain": json.loads((work / "plain.json").read_text()),
        "adapters": {name: model.transformer.config[name] for name in ("audio_features", "audio_width")},
        "training": {
            "steps": hunyuan_audio.STEPS,
            "clips": hunyuan_audio.CLIPS,
            "batch": hunyuan_audio.BATCH,
            "lr": hunyuan_audio.LR,
            "ema": hunyuan_audio.EMA_DECAY,
            "silent": hunyuan_audio.SILENT,
            "emphasis": hunyuan_audio.EMPHASIS,
            "shift": hunyuan_audio.SHIFT,
            "caption_dropout": hunyuan_audio.CAPTION_DROPOUT,
            "guided": hunyuan_audio.GUIDED,
            "guidance": hunyuan_audio.GUIDANCE,
            "seed": hunyuan_audio.SEED,
        },
        "command": "flgbench pretrain --model hunyuan-ati2v",
    }
    (partial / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    (partial / "flgbench.json").write_text(json.dumps({"plain": "hunyuan-tiny"}) + "\n")
    shutil.copy(work / "audio-log.jsonl", partial / "audio-log.jsonl")
    write_hashes(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
