"""A step that writes what it read, trains, or fails: whatever its settings ask for."""

import json
import time

import torch


def run(step, store, folder):
    if step.settings.get("fail"):
        raise ValueError("by request")
    if name := step.settings.get("distributed"):
        from distributed_worker import run as train_over_processes

        train_over_processes(name, folder, None)
    if budget := step.settings.get("budget"):
        _train(folder, budget)
    read = [(store.path(key) / "out.txt").read_text() for key in step.inputs.values()]
    if size := step.settings.get("megabytes"):
        (folder / "big.bin").write_bytes(bytes(size << 20))
    time.sleep(step.settings.get("seconds", 0))
    (folder / "out.txt").write_text(step.name + "".join(read))
    return {"threads": torch.get_num_threads()}


def _train(folder, budget):
    """The training loop on a random model; every iteration is a quarter of a second longer, to be interrupted."""
    from conftest import build_tiny_data, build_tiny_model
    from train_worker import run as train

    def log(**line):
        time.sleep(0.25)
        with (folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps({k: line[k] for k in ("iteration", "loss")}) + "\n")

    model = build_tiny_model()
    train(model, build_tiny_data(model), folder / "work", log, budget)
