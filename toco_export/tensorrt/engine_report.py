"""What TensorRT says that it built: layers with the types of their tensors, and the precision that follows."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from toco_core.manifest import Precision

# Kinds of layer that multiply matrices, in the words of TensorRT and of its compiler back end ("correlation" is a
# convolution, "runtime_fusion" a matrix product with what follows it).
PRODUCT_KIND = re.compile(r"gemm|correlation|runtime_fusion|conv(?!er)|matmul|matrix_?multiply", re.IGNORECASE)

ATTENTION = re.compile(r"mha|attention", re.IGNORECASE)

PRECISIONS: dict[str, Precision] = {
    "half": "fp16",
    "fp16": "fp16",
    "float": "fp32",
    "fp32": "fp32",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
}

LOG_LAYER = re.compile(
    r"^Name: (?P<name>.+?), LayerType: (?P<kind>\S+), Inputs: \[(?P<inputs>.*?)\], (?:Constants: .*, )?Outputs: \[",
    re.MULTILINE,
)
LOG_TYPE = re.compile(r"Datatype: ([^,}]+)")


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine.

    Attributes:
        name: TensorRT's name for it.
        kind: TensorRT's word for what it does, such as ``gemm``.
        input_types: Type of each input tensor, such as ``Half``.
    """

    name: str
    kind: str
    input_types: tuple[str, ...]

    @property
    def is_attention(self) -> bool:
        """Whether it is a whole attention: both products and the softmax between them."""
        return bool(ATTENTION.search(self.kind) or ATTENTION.search(self.name))

    @property
    def is_product(self) -> bool:
        """Whether it multiplies matrices."""
        return self.is_attention or bool(PRODUCT_KIND.search(self.kind))


def layers_of_inspector(text: str) -> list[EngineLayer]:
    """Read the engine inspector's JSON, made from an engine with detailed profiling."""
    return [
        EngineLayer(layer["Name"], layer.get("LayerType", ""), tuple(map(_type_of, layer.get("Inputs", ()))))
        for layer in json.loads(text)["Layers"]
        if isinstance(layer, dict)  # without detail a layer is only its name
    ]


def layers_of_log(text: str) -> list[EngineLayer]:
    """Read the same report as the builder logs it (severity VERBOSE) when an engine is finished."""
    return [
        EngineLayer(layer["name"], layer["kind"], tuple(LOG_TYPE.findall(layer["inputs"])))
        for layer in LOG_LAYER.finditer(text)
    ]


@dataclass(frozen=True)
class EngineReport:
    """What was built.

    Attributes:
        layers: The engine's layers.
        module: The library's module.
        version: Its version: only the same version loads the engine.
    """

    layers: tuple[EngineLayer, ...]
    module: str
    version: str

    @property
    def product_types(self) -> Counter[str]:
        """Layers that multiply matrices by the precision of what they multiply; unknown types by their name."""
        types = (layer.input_types[0] for layer in self.layers if layer.input_types and layer.is_product)
        return Counter(PRECISIONS.get(name.lower(), name) for name in types)

    @property
    def num_fused_attention(self) -> int:
        """Layers that are a whole attention."""
        return sum(layer.is_attention for layer in self.layers)

    def summary(self) -> str:
        """Say what the engine is made of."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(x.kind for x in self.layers).most_common())
        products = ", ".join(f"{name} {count}" for name, count in self.product_types.most_common())
        return (
            f"{self.module} {self.version}: {len(self.layers)} layers ({kinds}); matrix products in {products}; "
            f"fused attention in {self.num_fused_attention} layers."
        )


def _type_of(tensor: dict[str, Any]) -> str:
    """Return the type of one tensor; older versions of TensorRT write format and type as one text."""
    text = str(tensor.get("Datatype") or tensor.get("Format/Datatype", ""))
    words = [word for word in re.findall(r"\w+", text) if word.lower() in PRECISIONS]
    return words[-1] if words else text
