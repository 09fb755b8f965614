"""Do other releases of ONNX Runtime open our files, and what onnxsim and onnxslim make of them?

    python benchmarks/readers.py RUN_FOLDER /path/to/one/venv/bin/python ...

Each interpreter needs onnxruntime and numpy; onnxsim and onnxslim are asked where it has them, and
ONNX Runtime runs what they return. RUN_FOLDER holds a run's `model.onnx`, and `dense.onnx` if it
was kept. The images are random; the release in this process is the reference.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from pqd.measure.graph import input_of
from pqd.measure.timings import random_images

IMAGES = 500

# Runs in the other interpreter, which knows nothing of pqd.
READ = """
import importlib.metadata, importlib.util, json, sys
import numpy as np
import onnxruntime as ort

def onnxruntime(path):
    return path

def onnxsim(path):
    import onnxsim
    model, checked = onnxsim.simplify(path)
    assert checked, "its own check fails"
    return model.SerializeToString()

def onnxslim(path):
    import onnxslim
    return onnxslim.slim(path).SerializeToString()

found = []
for read in (onnxruntime, onnxsim, onnxslim):
    if importlib.util.find_spec(read.__name__) is None:
        continue
    row = {"reader": f"{read.__name__} {importlib.metadata.version(read.__name__)}"}
    found.append(row)
    try:
        session = ort.InferenceSession(read(sys.argv[1]), providers=["CPUExecutionProvider"])
        logits = session.run(None, {session.get_inputs()[0].name: np.load(sys.argv[2])})[0]
        row["classes"] = logits.argmax(1).tolist()
    except Exception as error:
        row["error"] = str(error)
print(json.dumps(found))
"""


def read(python: str, model: Path, images: Path) -> list[dict[str, Any]]:
    """Returns the readers that an interpreter has, and the classes or the error each gives."""
    command = [python, "-c", READ, str(model), str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Prints a table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("pythons", nargs="+", help="interpreters with other releases")
    arguments = parser.parse_args()
    print(f"| file | IR | reader | opens | agrees with {ort.__version__} |")
    print("|---|---:|---|---|---:|")
    for model in sorted(arguments.run.glob("*.onnx")):
        proto = onnx.load(model)
        with tempfile.TemporaryDirectory() as folder:
            images = Path(folder, "images.npy")
            np.save(images, random_images(input_of(model), IMAGES, 0))
            own = np.array(read(sys.executable, model, images)[0]["classes"])
            for found in (
                row for python in arguments.pythons for row in read(python, model, images)
            ):
                opens = "yes" if "classes" in found else f"no: {found['error']}"
                same = f"{100 * np.mean(own == found['classes']):.1f} %" if opens == "yes" else ""
                row = model.name, proto.ir_version, found["reader"], opens, same
                print("|", " | ".join(map(str, row)), "|")


if __name__ == "__main__":
    main()
