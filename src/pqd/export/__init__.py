"""From a trained network to the files that are deployed: ONNX, and ExecuTorch's."""
