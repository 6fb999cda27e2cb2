"""From a training run to a model repository: ONNX, TensorRT, parity checks and the manifest."""
