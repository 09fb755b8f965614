"""Do other releases of ONNX Runtime open our files, and do they name the same classes?

    python benchmarks/readers.py RUN_FOLDER /path/to/one/venv/bin/python ...

Each interpreter needs onnxruntime and numpy alone. RUN_FOLDER holds a run's `model.onnx`, and
`dense.onnx` if it was kept. The images are random; the release in this process is the reference.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

IMAGES = 500

# Runs in the other release, which knows nothing of pqd.
READ = """
import json, sys
import numpy as np
import onnxruntime as ort

found = {"version": ort.__version__}
try:
    session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: np.load(sys.argv[2])})[0]
    found["classes"] = logits.argmax(1).tolist()
except Exception as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


def read(python: str, model: Path, images: Path) -> dict[str, object]:
    """Returns the release that an interpreter has, and the classes or the error it gives."""
    command = [python, "-c", READ, str(model), str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Prints a table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("pythons", nargs="+", help="interpreters with other releases")
    arguments = parser.parse_args()
    print(f"| file | IR | ONNX Runtime | opens | agrees with {ort.__version__} |")
    print("|---|---:|---|---|---:|")
    for model in sorted(arguments.run.glob("*.onnx")):
        proto = onnx.load(model)
        shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
        with tempfile.TemporaryDirectory() as folder:
            images = Path(folder, "images.npy")
            generator = np.random.default_rng(0)
            np.save(images, generator.standard_normal((IMAGES, *shape), dtype=np.float32))
            own = np.array(read(sys.executable, model, images)["classes"])
            for python in arguments.pythons:
                found = read(python, model, images)
                opens = "yes" if "classes" in found else f"no: {found['error']}"
                same = f"{100 * np.mean(own == found['classes']):.1f} %" if opens == "yes" else ""
                row = model.name, proto.ir_version, found["version"], opens, same
                print("|", " | ".join(map(str, row)), "|")


if __name__ == "__main__":
    main()
