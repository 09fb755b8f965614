"""The deployable artifact: integer network, ONNX file, entropy-coded package."""
