"""A step that writes what it read, waits, counts like a training, or fails: whatever its settings ask for."""

import json
import time


def run(step, store, folder):
    if step.settings.get("fail"):
        raise ValueError("by request")
    checkpoint = folder / "work" / "count.json"
    count = json.loads(checkpoint.read_text()) if checkpoint.exists() else 0
    for count in range(count, step.settings.get("count", 0)):
        time.sleep(0.5)
        checkpoint.write_text(str(count + 1))
        store.event(step.key, "progress", fraction=(count + 1) / step.settings["count"], loss=1 / (count + 1))
    read = [(store.path(key) / "out.txt").read_text() for key in step.inputs.values()]
    (folder / "out.txt").write_text(step.name + "".join(read))
    return {"read": len(read)}
