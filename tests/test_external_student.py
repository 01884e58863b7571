"""Students from elsewhere: read from a TOML file, refused in one line where they do not fit, evaluated as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import SMALL, Flgbench, assert_refused
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from flgbench import api, flow
from flgbench.cells import Step
from flgbench.errors import UsageError
from flgbench.export import check_exportable
from flgbench.external import read
from flgbench.models.families import WanXFamily
from flgbench.models.outside import with_lora
from flgbench.models.wanx import WanX
from flgbench.plan import plan
from flgbench.run_settings import RunSettings
from flgbench.sampling import SamplerSettings, generate
from flgbench.steps import external as step_kind
from flgbench.steps import loading
from flgbench.store import Store, sha256
from flgbench.students import find_student
from reports.data import load_run

RANK, ALPHA = 4, 8
LAYER = "blocks.0.attn1.to_q"
SAMPLED: dict[str, Any] = {"sampler": "renoise", "timesteps": [1000, 750], "guidance_scale": 1, "source": "a paper"}


def write(path: Path, *students: dict[str, Any]) -> Path:
    """A TOML file; JSON values are TOML values here."""
    blocks = ["\n".join(["[[student]]", *(f"{k} = {json.dumps(v)}" for k, v in s.items())]) for s in students]
    path.write_text("\n".join(blocks) + "\n")
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_model: WanX) -> Path:
    """`teacher/transformer`, and students of it: `student` (a pipeline folder), `pruned`, `lora.safetensors`."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_model.copy().transformer.save_pretrained(folder / "teacher" / "transformer")
    perturbed(tiny_model).transformer.save_pretrained(folder / "student" / "transformer")
    (folder / "student" / "model_index.json").write_text('{"transformer": ["diffusers", "WanTransformer3DModel"]}')
    pruned = tiny_model.without_blocks([1]).transformer
    pruned.register_to_config(num_layers=3)
    pruned.save_pretrained(folder / "pruned")
    save_lora(tiny_model, folder / "lora.safetensors")
    return folder


def perturbed(model: WanX) -> WanX:
    twin, generator = model.copy(), torch.Generator().manual_seed(0)
    for parameter in twin.transformer.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return twin


def save_lora(model: WanX, file: Path) -> None:
    """Random adapters of peft, saved by diffusers with their alpha."""
    transformer = model.copy().transformer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer.add_adapter(
            LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["to_q", "ffn.net.2"], init_lora_weights=False)
        )
    transformer.save_lora_adapter(file.parent, weight_name=file.name)


def refused(weights: Path, tmp_path: Path, **changes: Any) -> str:
    """What `read` says of a good entry with `changes`; None takes a key out."""
    values = {"name": "theirs", "folder": str(weights / "student"), **SAMPLED} | changes
    file = write(tmp_path / "students.toml", {k: v for k, v in values.items() if v is not None})
    with pytest.raises(UsageError) as error:
        read([file], weights / "teacher")
    assert "\n" not in str(error.value) and "theirs" in str(error.value)
    return str(error.value)


# Sampling at given times


def test_explicit_times_replace_the_even_ones() -> None:
    """Where the list is that of even shifted steps, the schedule is the same."""
    even = SamplerSettings(kind="renoise", num_inference_steps=4, shift=5.0)
    listed = SamplerSettings(kind="renoise", num_inference_steps=4, times=(1.0, 0.9375, 5 / 6, 0.625))
    torch.testing.assert_close(listed.schedule(), even.schedule())
    torch.testing.assert_close(even.schedule(), flow.euler_times(4, 5.0))
    assert SamplerSettings.model_validate(listed.record()) == listed
    assert "times" not in even.record() and "shift" not in listed.record()  # keys of old samplers stay as they were


@pytest.mark.parametrize("times", [[0.5, 0.5], [0.5, 0.9], [1.1, 0.5], [1.0, 0.0]])
def test_times_must_descend_within_zero_and_one(times: list[float], weights: Path, tmp_path: Path) -> None:
    told = refused(weights, tmp_path, timesteps=None, times=times)
    assert "must descend within (0, 1]" in told
    assert "must descend within (0, 1]" in refused(weights, tmp_path, timesteps=[1000 * t for t in times])


# What is refused


def test_wrong_entries_are_refused(weights: Path, tmp_path: Path) -> None:
    def told(**changes: Any) -> str:
        return refused(weights, tmp_path, **changes)

    assert "did you mean 'guidance_scale'" in told(guidance_scal=2.0)
    assert "either folder or lora" in told(lora="x.safetensors")
    assert "either folder or lora" in told(folder=None)
    assert "exactly one of num_inference_steps" in told(times=[1.0])
    assert "exactly one of num_inference_steps" in told(timesteps=None)
    assert "shift belongs to num_inference_steps" in told(timesteps=None, num_inference_steps=4)
    assert "source" in told(source=None) and "Field required" in told(source=None)
    assert "'euler', 'renoise' or 'unipc'" in told(sampler="ddim")
    assert "does not exist" in told(folder="nowhere")
    assert "a single file is a `lora`" in told(folder=str(weights / "lora.safetensors"))
    assert "nothing else is read" in told(folder=None, lora=str(weights / "teacher" / "transformer" / "config.json"))


def test_names_that_are_taken_are_refused(weights: Path, tmp_path: Path) -> None:
    good = {"folder": str(weights / "student"), **SAMPLED}
    for name, owner in (("dmd2", "methods"), ("euler-4", "baselines")):
        file = write(tmp_path / "taken.toml", {"name": name, **good})
        with pytest.raises(UsageError, match=f"taken among the {owner}"):
            read([file], weights / "teacher")
    file = write(tmp_path / "twice.toml", {"name": "theirs", **good}, {"name": "theirs", **good})
    with pytest.raises(UsageError, match="taken among the students"):
        read([file], weights / "teacher")


def test_files_that_are_none_are_refused(weights: Path, tmp_path: Path) -> None:
    for name, text, word in (
        ("a.toml", "[[student]\n", "cannot be read as TOML"),
        ("b.toml", "students = 3\n", "unknown key 'students'"),
        ("c.toml", "", r"no \[\[student\]\] entry"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=word):
            read([tmp_path / name], weights / "teacher")


def test_pickled_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((weights / "pruned" / "config.json").read_bytes())
    assert "no diffusion_pytorch_model.safetensors" in refused(weights, tmp_path, folder=str(folder))
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    assert "is pickled" in refused(weights, tmp_path, folder=str(folder))


def save_other(folder: Path, **changes: Any) -> str:
    WanTransformer3DModel(**{**SMALL, **changes}).save_pretrained(folder)
    return str(folder)


def test_another_architecture_is_refused_with_what_differs(weights: Path, tmp_path: Path) -> None:
    def told(name: str, **changes: Any) -> str:
        return refused(weights, tmp_path, folder=save_other(tmp_path / name, **changes))

    assert "num_attention_heads is 1, the teacher's 2" in told("narrow", num_attention_heads=1)
    assert "in_channels is 16, the teacher's 36" in told("text-only", in_channels=16)
    assert "it has 5 blocks, the teacher 4" in told("deep", num_layers=5)
    config = tmp_path / "narrow" / "config.json"
    config.write_text(config.read_text().replace("WanTransformer3DModel", "CogVideoXTransformer3DModel"))
    assert "its class is CogVideoXTransformer3DModel" in refused(weights, tmp_path, folder=str(tmp_path / "narrow"))
    index = tmp_path / "deep" / "model_index.json"
    index.write_text('{"transformer_2": ["diffusers", "WanTransformer3DModel"]}')
    assert "two denoisers" in refused(weights, tmp_path, folder=str(tmp_path / "deep"))


def test_weights_that_are_not_those_of_their_config_are_refused(weights: Path, tmp_path: Path) -> None:
    """Diffusers would fill what is missing with random numbers."""
    folder = Path(save_other(tmp_path / "incomplete"))
    file = folder / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    save_file({k: v for k, v in whole.items() if k != f"{LAYER}.weight"}, file)
    assert f"its weights lack {LAYER}.weight" in refused(weights, tmp_path, folder=str(folder))
    save_file(whole | {"stranger": torch.zeros(1)}, file)
    assert "have an unknown stranger" in refused(weights, tmp_path, folder=str(folder))
    save_file(whole | {f"{LAYER}.bias": torch.zeros(3)}, file)
    assert f"{LAYER}.bias is (3,), its config.json says (24,)" in refused(weights, tmp_path, folder=str(folder))
    file.write_bytes(b"no tensors")
    assert "cannot be read" in refused(weights, tmp_path, folder=str(folder))


def test_a_lora_that_does_not_fit_is_refused(weights: Path, tmp_path: Path) -> None:
    def told(**tensors: torch.Tensor) -> str:
        save_file({k.replace("__", "."): v for k, v in tensors.items()}, tmp_path / "bad.safetensors")
        return refused(weights, tmp_path, folder=None, lora="bad.safetensors")

    assert "belongs to no layer of the teacher" in told(blocks__9__attn1__to_q__lora_A__weight=torch.zeros(4, 24))
    assert "(4, 99), the teacher's layer (24, 24)" in told(blocks__0__attn1__to_q__lora_A__weight=torch.zeros(4, 99))
    assert "belongs to no layer of the teacher" in told(lora_te__q__lora_A__weight=torch.zeros(4, 24))
    (tmp_path / "bad.safetensors").write_bytes(b"\x80")
    assert "cannot be read as safetensors" in refused(weights, tmp_path, folder=None, lora="bad.safetensors")


def test_the_command_line_refuses_before_any_work(flgbench: Flgbench, tmp_path: Path) -> None:
    result = flgbench("run", "--methods", "none", "--external", "nowhere.toml")
    assert_refused(result, "--external nowhere.toml", "no such file")
    write(tmp_path / "wide.toml", {"name": "wide", "folder": save_other(tmp_path / "wide"), **SAMPLED})
    assert_refused(flgbench("plan", "--methods", "none", "--external", "wide.toml"), "another architecture", "ffn_dim is 32")
    assert not (tmp_path / "flgbench-out").exists()


# What is read


def test_a_lora_is_added_to_the_weights_as_its_alpha_says(weights: Path, tiny_model: WanX) -> None:
    parts = load_file(weights / "lora.safetensors")
    update = ALPHA / RANK * parts[f"{LAYER}.lora_B.weight"] @ parts[f"{LAYER}.lora_A.weight"]
    before = tiny_model.transformer.state_dict()
    after = with_lora(tiny_model.transformer, weights / "lora.safetensors", 0.5).state_dict()
    assert after.keys() == before.keys()
    torch.testing.assert_close(after[f"{LAYER}.weight"], before[f"{LAYER}.weight"] + 0.5 * update)
    untouched = "blocks.0.attn1.to_k.weight"
    torch.testing.assert_close(after[untouched], before[untouched], rtol=0, atol=0)


def test_a_lora_with_the_names_of_the_original_code_is_the_same(weights: Path, tmp_path: Path, tiny_model: WanX) -> None:
    """As LightX2V's and Kijai's files name their layers: down, up and alpha of `self_attn.q`."""
    names = {"attn1.to_q": "self_attn.q", "attn2.to_q": "cross_attn.q", "ffn.net.2": "ffn.2"}
    translated: dict[str, torch.Tensor] = {}
    for name, value in load_file(weights / "lora.safetensors").items():
        for ours, theirs in names.items():
            if ours in name:
                renamed = name.replace(ours, theirs).replace("lora_A", "lora_down").replace("lora_B", "lora_up")
                translated[f"diffusion_model.{renamed}"] = value
                translated[f"diffusion_model.{renamed.partition('.lora_')[0]}.alpha"] = torch.tensor(float(ALPHA))
    save_file(translated, tmp_path / "original.safetensors")
    entry = {"name": "theirs", "lora": "original.safetensors", **SAMPLED}
    (found,) = read([write(tmp_path / "s.toml", entry)], weights / "teacher")
    mine = with_lora(tiny_model.transformer, Path(found.place), 1.0).state_dict()
    same = with_lora(tiny_model.transformer, weights / "lora.safetensors", 1.0).state_dict()
    for name, value in same.items():
        torch.testing.assert_close(mine[name], value, msg=name)


def test_the_step_brings_in_the_very_weights(
    weights: Path, tmp_path: Path, tiny_model: WanX, tiny_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips of a brought-in folder are those of the same weights as a method's student."""
    monkeypatch.setattr(loading, "_teacher", lambda *_, **__: tiny_model)
    entries = [{"name": n, "folder": str(weights / n), **SAMPLED} for n in ("student", "pruned")]
    student, pruned = read([write(tmp_path / "s.toml", *entries)], weights / "teacher")
    assert student.keeps_network and not pruned.keeps_network
    made = {}
    for found in (student, pruned):
        place = {"model": "wanx", "scale": "tiny"} | found.content()
        step, folder = Step("external", "x", place, location=found.place), tmp_path / found.student.name
        folder.mkdir()
        facts = step_kind.run(step, Store(tmp_path), folder)
        made[found.student.name] = tiny_model.with_transformer(folder / "transformer")
        assert facts["blocks"] == len(made[found.student.name].blocks)
    perturbed(tiny_model).save(tmp_path / "trained")  # what a training writes
    condition, sampler = tiny_data.condition.select(slice(0, 2)), student.student.sampler_settings()
    pairs = (
        (made["student"], tiny_model.with_transformer(tmp_path / "trained")),
        (made["pruned"], tiny_model.without_blocks([1])),
    )
    for mine, expected in pairs:
        clips = [generate(m, condition, [(0, 0), (1, 0)], sampler)[0] for m in (mine, expected)]
        torch.testing.assert_close(*clips, rtol=0, atol=0)
    with pytest.raises(UsageError, match="has changed since the run was planned"):
        other = Step("external", "x", place | {"files": dict.fromkeys(pruned.files, "0")}, location=pruned.place)
        step_kind.run(other, Store(tmp_path), tmp_path / "pruned")


def test_the_plan_knows_a_student_by_its_content(weights: Path, tmp_path: Path) -> None:
    """Another place is the same step; other bytes are another; a network of its own is what latency waits for."""
    names = ("student", "pruned")
    entries = [{"name": n, "label": "Theirs", "folder": str(weights / n), **SAMPLED} for n in names]
    found = read([write(tmp_path / "s.toml", *entries)], weights / "teacher")
    assert found[0].files["config.json"] == sha256(weights / "student" / "transformer" / "config.json")

    def planned(students: Any) -> Any:
        return plan(RunSettings(methods=("dmd2",), baselines=("euler",), external=students), {})

    made = planned(found)
    cells = {c.name: c for c in made.cells}
    assert [cells[n].kind for n in names] == ["external"] * 2 and cells["student"].label == "Theirs (external)"
    latency = next(s for s in made.steps.values() if s.kind == "latency")
    assert {k for k in latency.inputs if k.startswith("student:")} == {"student:pruned"}
    assert set(names) < set(latency.settings["samplers"])
    assert latency.settings["samplers"]["student"]["times"] == [1.0, 0.75]
    moved = [f.model_copy(update={"place": "/elsewhere"}) for f in found]
    assert list(planned(moved).steps) == list(made.steps)
    other = [found[0].model_copy(update={"files": {"config.json": "0"}}), found[1]]
    assert planned(other).cells[-2].student != cells["student"].student
    without = plan(RunSettings(methods=("dmd2",), baselines=("euler",)), {})
    assert {k for k, s in without.steps.items() if s.kind != "latency"} < set(made.steps)
    assert RunSettings.model_validate(json.loads(RunSettings(external=found).model_dump_json())).external == found


# The whole path, with the shipped teacher


def test_external_students_are_rows_of_a_run(tmp_path: Path) -> None:
    teacher = WanXFamily().load("tiny")
    student = perturbed(teacher)
    student.transformer.save_pretrained(tmp_path / "theirs")
    save_lora(teacher, tmp_path / "lora.safetensors")
    entries = ({"name": "whole", "folder": "theirs"}, {"name": "added", "lora": "lora.safetensors", "lora_scale": 0.1})
    file = write(tmp_path / "students.toml", *({**entry, **SAMPLED, "label": entry["name"].title()} for entry in entries))
    run = api.run(
        "none", "none", out=tmp_path / "out", external=[file], training_clips=16, conditions=2, repeated_conditions=0
    )
    assert not run.failed
    rows = run.main.set_index("cell")
    assert list(rows.index) == ["whole", "added"] and set(rows["kind"]) == {"external"}
    assert rows.loc["whole", "label"] == "Whole (external)" and rows.loc["whole", "nfe"] == 2
    assert pd.isna(rows.loc["whole", "training_passes"]) and rows.loc["whole", "training_passes_note"] == "trained elsewhere"
    assert "Whole (external)" in run.report.read_text() and "a paper" in run.report.read_text()

    cells = {c.cell: c for c in load_run(run.folder).cells}
    assert cells["whole"].settings["source"] == "a paper" and cells["whole"].settings["licence"] == "not stated"
    key = json.loads((run.folder / "plan.json").read_text())["cells"]["whole"]
    video = load_file(tmp_path / "out" / "store" / key / "videos.safetensors")["video"]
    data = next((tmp_path / "out" / "store").glob("data-test-*"))
    condition = loading.load_clips(data).condition.select(slice(0, 2))
    sampler = SamplerSettings(kind="renoise", num_inference_steps=2, times=(1.0, 0.75))
    latents, _ = generate(student, condition, [(0, 0), (1, 0)], sampler)
    torch.testing.assert_close(video, student.decode(latents), rtol=0, atol=0)

    assert api.load_student("latest/added", out=tmp_path / "out").sampler == sampler
    with pytest.raises(UsageError, match="was made elsewhere"):
        check_exportable(find_student("latest/added", tmp_path / "out"), tmp_path / "exported")
