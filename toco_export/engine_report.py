"""What TensorRT says that it built: layers with the types of their tensors, and the precision that follows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toco.errors import ExportError
from toco.manifest import Precision

# Kinds of layer that multiply matrices, in the words of TensorRT and of its compiler back end ("correlation" is a
# convolution, "runtime_fusion" a matrix product with what follows it).
PRODUCT_KIND = re.compile(
    r"gemm|correlation|runtime_fusion|conv(?!er)|matmul|matrix_?multiply|mha|attention", re.IGNORECASE
)

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


def engine_precision(layers: Sequence[EngineLayer]) -> Precision:
    """Return the precision in which all matrix products of an engine run.

    Raises:
        ExportError: They are of more than one precision, or there is none.
    """
    found = count_product_types(layers)
    if len(found) != 1 or not found.keys() <= set(PRECISIONS.values()):
        counts = ", ".join(f"{count} in {name}" for name, count in found.most_common())
        raise ExportError(
            f"the engine's matrix products are {counts or 'not to be found in its report'}, expected one precision: "
            "this version of TensorRT changed what the network asks for; try another one, or export without --fp16"
        )
    return PRECISIONS[next(iter(found))]


def count_product_types(layers: Sequence[EngineLayer]) -> Counter[str]:
    """Count the layers that multiply matrices by the precision of what they multiply; unknown types by their name."""
    types = (layer.input_types[0] for layer in layers if layer.input_types and PRODUCT_KIND.search(layer.kind))
    return Counter(PRECISIONS.get(name.lower(), name) for name in types)


def _type_of(tensor: dict[str, Any]) -> str:
    """Return the type of one tensor; older versions of TensorRT write format and type as one text."""
    text = str(tensor.get("Datatype") or tensor.get("Format/Datatype", ""))
    words = [word for word in re.findall(r"\w+", text) if word.lower() in PRECISIONS]
    return words[-1] if words else text
