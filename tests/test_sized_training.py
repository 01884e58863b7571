"""Training at size on two processes of a CPU: it is the training of one, sharded; in bf16 it stays near."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SMALL, build_tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sized_worker import SCENARIOS
from torch.distributed.tensor import DTensor

from flgbench import costs
from flgbench.checkpoint import check_saved, skeleton
from flgbench.errors import StageFailure
from flgbench.loop_settings import LoopSettings, SizedSettings
from flgbench.models.wanx import WanX
from flgbench.plan import plan
from flgbench.run_settings import RunSettings
from flgbench.stage import Roles, TrainingData
from flgbench.steps import execute
from flgbench.steps.loading import load_teacher
from flgbench.store import Store
from methods.parts.distribution_matching import DistributionMatching, MatchSettings
from methods.parts.lora import lora_layers, set_lora_scale, with_lora
from methods.parts.recovery import Recovery, RecoverySettings

WORKER = Path(__file__).with_name("sized_worker.py")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of all scenarios, trained by one program."""
    root = tmp_path_factory.mktemp("sized")
    path = os.pathsep.join([str(WORKER.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", str(WORKER), str(root), *SCENARIOS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return lambda name: root / (SCENARIOS[name].folder or name)


def curve(folder: Path) -> list[dict[str, float]]:
    lines = {line["iteration"]: line for line in map(json.loads, (folder / "curve.jsonl").read_text().splitlines())}
    return [lines[i] for i in sorted(lines)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "transformer" / WEIGHTS)


def assert_same_training(folder: Path, plain: Path) -> None:
    ours, theirs = curve(folder), curve(plain)
    assert len(ours) == len(theirs) == SCENARIOS[plain.name].iterations
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5, abs=1e-7)
        assert a["passes"] == pytest.approx(b["passes"])
    mine, expected = weights(folder), weights(plain)
    assert mine.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5, msg=name)


RECOVERIES = ["recovery-sized", "recovery-eager", "recovery-alone", "recovery-offload", "recovery-resumed"]


@pytest.mark.parametrize("name", RECOVERIES)
def test_a_sized_training_in_fp32_is_the_plain_one(name: str, trained: Callable[[str], Path]) -> None:
    """Activations computed again, gradients accumulated, an EMA, blocks skipped at random, the second process's teacher
    on the meta device; killed by SIGKILL and resumed from its shards, on one process, offloaded: the same losses and EMA."""
    assert_same_training(trained(name), trained("recovery-plain"))


def test_a_killed_training_went_on_from_its_shards(trained: Callable[[str], Path]) -> None:
    """Not from the beginning; and every process wrote a part that none of them has whole."""
    folder = trained("recovery-resumed")
    iterations = [json.loads(line)["iteration"] for line in (folder / "curve.jsonl").read_text().splitlines()]
    assert iterations == [1, 2, 3, 4, 5, 6]  # 4 was killed before it was logged, 3 had been saved
    (checkpoint,) = (folder / "work").glob("checkpoint-*")
    shards = sorted(checkpoint.iterdir())
    assert len(shards) == 2 and all(shard.suffix == ".safetensors" for shard in shards)
    whole = weights(folder)["blocks.0.ffn.net.0.proj.weight"].shape
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            for kind in ("module/student", "tensor", "optimizer/student"):
                assert any(key.startswith(kind) for key in file.keys())  # noqa: SIM118  (not a mapping)
            part = file.get_tensor("tensor/blocks.0.ffn.net.0.proj.weight").shape
        assert part[0] * 2 == whole[0] and part[1:] == whole[1:]


def test_gradients_are_reduced_once_an_iteration(trained: Callable[[str], Path]) -> None:
    """Six iterations of two parts: reducing after each part is nearly twice as often, skipped blocks aside."""

    def reductions(name: str) -> int:
        return json.loads((trained(name) / "facts.json").read_text())["reductions"]

    groups = SMALL["num_layers"] + 1  # each block, and what is around them
    assert groups < reductions("recovery-sized") <= 6 * (groups + 1)
    assert reductions("recovery-eager") > 1.5 * reductions("recovery-sized")


@pytest.mark.parametrize("kind", ["magic", "adapted"])
def test_adapters_whose_scale_changes_between_passes(kind: str, trained: Callable[[str], Path]) -> None:
    """Activations that are computed again must be those of the network that made them."""
    assert_same_training(trained(f"{kind}-sized"), trained(f"{kind}-plain"))


@pytest.mark.parametrize("kind", ["dmd2", "adapted", "icmd"])
def test_bf16_trains_and_stays_near_fp32(kind: str, trained: Callable[[str], Path]) -> None:
    """Losses within 1 %, also from a teacher stored in bf16; the student's masters are fp32. From an fp32 teacher they moved
    as far and by 95 % in the same direction."""
    ours, theirs = curve(trained(f"{kind}-bf16")), curve(trained(f"{kind}-plain"))
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.01)
    start = build_tiny_model().transformer.state_dict()
    mine, expected = weights(trained(f"{kind}-bf16")), weights(trained(f"{kind}-plain"))
    assert all(value.dtype == torch.float32 for value in mine.values())
    if kind == "dmd2":
        moved = [torch.cat([(w[k] - start[k]).flatten() for k in start]) for w in (mine, expected)]
        assert torch.cosine_similarity(*moved, dim=0) > 0.95
        assert moved[0].norm() == pytest.approx(moved[1].norm().item(), rel=0.05)
    assert any(not torch.equal(mine[k], expected[k]) for k in mine)  # bf16 was really used


def test_the_log_of_a_sized_training(trained: Callable[[str], Path]) -> None:
    for line in curve(trained("dmd2-bf16")):
        assert line["passes_per_second"] > 0 and line["clips_per_second"] > 0 and line["peak_memory_gb"] > 0.05
        # 1e9 FLOP a pass on two devices of 1e12 FLOP/s, as the worker says.
        assert line["mfu"] == pytest.approx(line["passes_per_second"] * 1e9 / 2e12)
    assert "mfu" not in curve(trained("dmd2-plain"))[0]


def test_samples_lie_beside_the_log(trained: Callable[[str], Path]) -> None:
    import av

    clips = sorted((trained("dmd2-bf16") / "samples").iterdir())
    assert [clip.name for clip in clips] == ["iteration-000001.mp4", "iteration-000003.mp4"]
    with av.open(str(clips[0])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 17 and frames[0].shape == (64, 64, 3)
    assert not (trained("dmd2-plain") / "samples").exists()


def test_a_student_of_shards_is_a_diffusers_folder(trained: Callable[[str], Path], tiny_model: WanX) -> None:
    """Reloaded by diffusers' own loader, and equal to the shards that it was joined from."""
    folder = trained("recovery-sized")
    reloaded = tiny_model.with_transformer(folder / "transformer").transformer.state_dict()
    parts: dict[str, list[torch.Tensor]] = {}
    for shard in sorted((folder / "work" / "student" / "sharded").glob("*.safetensors")):
        for name, value in load_file(shard).items():
            parts.setdefault(name, []).append(value)
    assert reloaded.keys() == parts.keys()
    for name, value in reloaded.items():
        assert torch.equal(torch.cat(parts[name]), value), name
    assert any(len(found) == 2 for found in parts.values())


def test_a_file_that_is_not_what_was_trained_is_refused(tmp_path: Path, tiny_model: WanX) -> None:
    tiny_model.save(tmp_path)
    check_saved(tmp_path, tiny_model.transformer)
    stored = load_file(tmp_path / WEIGHTS)
    save_file(stored | {"blocks.0.scale_shift_table": stored["blocks.0.scale_shift_table"] + 1e-3}, tmp_path / WEIGHTS)
    with pytest.raises(StageFailure, match="scale_shift_table is not what was trained"):
        check_saved(tmp_path, tiny_model.transformer)
    save_file({k: v for k, v in stored.items() if not k.startswith("blocks.3")}, tmp_path / WEIGHTS)
    with pytest.raises(StageFailure, match=r"lacks blocks\.3"):
        check_saved(tmp_path, tiny_model.transformer)


def test_disk_is_as_the_cost_model_says(trained: Callable[[str], Path], tiny_model: WanX) -> None:
    """A checkpoint of weights, two moments and an EMA, and the student; headers of small files aside."""
    folder = trained("recovery-resumed")
    network = costs.wan(tiny_model.transformer.config, tiny_model.clip_shape, (4, 8), tiny_model.text_length)
    footprint = Recovery.footprint(RecoverySettings(), 0.5)
    assert footprint is not None
    told = costs.checkpoint_bytes(network, footprint, {"ema_decay": 0.9})
    (checkpoint,) = (folder / "work").glob("checkpoint-*")
    assert tensor_bytes(checkpoint) == pytest.approx(told, rel=0.01)
    assert tensor_bytes(folder / "transformer") == network.parameters * 4


def tensor_bytes(folder: Path) -> int:
    """Of all tensors in a folder's safetensors files."""
    return sum(value.nbytes for path in folder.glob("*.safetensors") for value in load_file(path).values())


def test_a_skeleton_has_names_and_no_memory(tiny_model: WanX) -> None:
    bones = skeleton(tiny_model.transformer)
    expected = tiny_model.transformer.state_dict()
    assert {k: v.shape for k, v in bones.state_dict().items()} == {k: v.shape for k, v in expected.items()}
    assert all(p.is_meta for p in bones.parameters()) and not any(p.is_meta for p in tiny_model.transformer.parameters())
    assert not any(b.is_meta for b in bones.buffers())  # rotary angles are no part of a state dict
    bones.load_state_dict({k: v.clone() for k, v in expected.items()}, assign=True)
    caption = torch.ones(1, 4, SMALL["text_dim"])
    x = {"hidden_states": torch.ones(1, 36, 5, 8, 8), "timestep": torch.ones(1), "encoder_hidden_states": caption}
    with torch.no_grad():
        assert torch.equal(bones(**x)[0], tiny_model.transformer(**x)[0])


def test_a_lora_critic_has_the_gradient_of_a_dense_one(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """With W' = W + BA and G = dL/dW': dL/dB = G A^T and dL/dA = B^T G."""
    lora = with_lora(tiny_model, rank=3)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(lora):
        layer.lora_B["default"].weight.data.normal_(std=0.05, generator=generator)
    dense = tiny_model.copy().requires_grad_(True)
    pairs = [(a, dict(dense.blocks.named_modules())[n]) for n, a in lora.blocks.named_modules() if a in lora_layers(lora)]
    with torch.no_grad():
        for adapted, plain in pairs:
            plain.weight += adapted.get_delta_weight("default")
    batch = tiny_data.batch(2, torch.Generator().manual_seed(0))
    set_lora_scale(lora_layers(lora), 1.0)
    for model in (lora, dense):
        model.velocity(batch.latents, torch.full((2,), 0.6), batch.condition).pow(2).mean().backward()
    assert pairs
    for adapted, plain in pairs:
        a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
        torch.testing.assert_close(b.grad, plain.weight.grad @ a.detach().T, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(a.grad, b.detach().T @ plain.weight.grad, rtol=1e-3, atol=1e-6)


def test_a_lora_critics_real_score_is_the_teachers(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """Whatever the adapter learnt; and no second copy of the teacher is placed or checkpointed."""
    settings = MatchSettings(critic="lora", critic_rank=2, beta1=2.0)
    stage = DistributionMatching(settings, Roles(tiny_model, tiny_data, {}))
    for layer in lora_layers(stage.fake):
        layer.lora_B["default"].weight.data.fill_(0.1)
    batch = tiny_data.batch(2, torch.Generator().manual_seed(0))
    t = torch.full((2,), 0.5)
    plain = DistributionMatching(MatchSettings(beta1=2.0), Roles(tiny_model, tiny_data, {}))
    with torch.no_grad():
        real = stage.real_velocity(batch.latents, t, batch.condition, batch)
        expected = plain.real_velocity(batch.latents, t, batch.condition, batch)
        fake = stage.fake_velocity(batch.latents, t, batch.condition)
    torch.testing.assert_close(real, expected)
    assert (fake - tiny_model.velocity(batch.latents, t, batch.condition)).abs().max() > 1e-2
    assert stage.frozen() == {} and plain.frozen().keys() == {"real"}
    trained_parameters = sum(p.numel() for g in stage.all_optimizers()["fake"].param_groups for p in g["params"])
    assert trained_parameters < 0.3 * tiny_model.n_parameters


def test_a_sized_step_of_a_plan(tmp_path: Path) -> None:
    """As a job runs it, in this process alone: its student is in the store, and the next step finds a whole teacher."""
    settings = RunSettings(
        methods=("dmd2",), training_clips=16, training={"batch": 1, "iterations": 2, "sized": {"ema_decay": 0.5}}
    )
    store = Store(tmp_path)
    steps = plan(settings, {}).steps
    wanted = [s for s in steps.values() if s.kind in ("teacher", "train") or (s.kind, s.name) == ("data", "train")]
    try:
        for step in wanted:
            execute(step, store)
    finally:
        torch.distributed.destroy_process_group()
    (training,) = (step for step in wanted if step.kind == "train")
    facts = store.facts(training.key)
    teacher = load_teacher(training)
    assert facts["iterations"] == 2 and facts["parameters"] == teacher.n_parameters
    student = teacher.with_transformer(store.path(training.key) / "transformer")
    assert not (store.path(training.key) / "work").exists()
    assert not any(isinstance(p, DTensor) for p in (*teacher.transformer.parameters(), *student.transformer.parameters()))
    pairs = zip(student.transformer.parameters(), teacher.transformer.parameters(), strict=True)
    assert sum(not torch.equal(a, b) for a, b in pairs) > 100
    (line,) = [json.loads(text) for text in (store.path(training.key) / "curve.jsonl").read_text().splitlines()]
    assert line["iteration"] == 2 and line["passes_per_second"] > 0


def test_settings_of_the_loop() -> None:
    loop = LoopSettings(iterations=10, budget=100)
    assert loop.spent(5, 1e6) == 0.5 and LoopSettings(budget=100).spent(5, 50.0) == 0.5
    assert "sized" not in LoopSettings().model_dump() and "iterations" in loop.model_dump()
    assert LoopSettings.model_validate(LoopSettings(sized=SizedSettings()).model_dump()).sized == SizedSettings()
    for wrong in ({"iterations": 0}, {"sized": {"ema_decay": 1.0}}, {"sized": {"precision": "fp16"}}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LoopSettings(**wrong)  # type: ignore[arg-type]
    assert math.isclose(LoopSettings(sized=SizedSettings()).checkpoint_seconds, 20.0)
