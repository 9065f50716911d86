"""AWS's own description of KMS, as botocore carries it: requests that fit it, requests that do not, and whether an answer fits."""

import base64
import binascii
import gzip
import json
import pathlib
import re

import botocore


def load():
    (path,) = (pathlib.Path(botocore.__file__).parent / "data" / "kms").glob("*/service-2.json.gz")
    return Model(json.loads(gzip.decompress(path.read_bytes())))


class Model:
    def __init__(self, text):
        self.operations = text["operations"]
        self.shapes = text["shapes"]

    def input(self, operation):
        return self.operations[operation]["input"]["shape"]

    def errors(self, operation):
        return {error["shape"] for error in self.operations[operation].get("errors", [])}

    def members(self, shape):
        return self.shapes[shape]["members"].items()

    def required(self, shape):
        return self.shapes[shape].get("required", [])

    # --- requests that fit ------------------------------------------------------------------------

    def some(self, dice, shape, name, known):
        """A value of a shape; one that exists on the server if `known` has any for this member."""
        if known.get(name) and dice.random() < 0.8:
            return dice.choice(known[name])
        about = self.shapes[shape]
        least, most = about.get("min", 0), about.get("max", 64)
        match about["type"]:
            case "string" if "enum" in about:
                return dice.choice(about["enum"])
            case "string":
                length = dice.choice([max(least, 1), min(most, 20), min(most, 300)])
                return "".join(dice.choice("abcxyz0189") for _ in range(length))
            case "blob":
                return base64.b64encode(dice.randbytes(dice.randint(least, min(most, 64)))).decode()
            case "integer":
                return dice.choice([least, most, dice.randint(least, most)])
            case "boolean":
                return dice.random() < 0.5
            case "timestamp":
                return dice.choice([1_000_000_000, 1_900_000_000.5])
            case "list":
                member = about["member"]["shape"]
                return [self.some(dice, member, name, known) for _ in range(dice.randint(max(least, 1), max(least, 2)))]
            case "map":
                return {"purpose": "test"} if dice.random() < 0.7 else {}
            case "structure":
                return self.structure(dice, shape, known)

    def structure(self, dice, shape, known, optional=0.3):
        """A structure with everything that is required and some of what is not."""
        return {
            name: self.some(dice, member["shape"], name, known)
            for name, member in self.members(shape)
            if name in self.required(shape) or dice.random() < optional
        }

    # --- values that do not fit -------------------------------------------------------------------

    def misfits(self, shape):
        """Values that a shape does not admit, each with what is wrong: `type` or `constraint`."""
        about = self.shapes[shape]
        kind = about["type"]
        yield from ((value, "type") for value in WRONG_TYPES[kind])
        if "enum" in about:
            yield from ((value, "constraint") for value in ["", "NONSENSE", about["enum"][0].lower() + " "])
            return
        least, most = about.get("min", 0), about.get("max")
        make = {"string": lambda n: "a" * n, "blob": lambda n: base64.b64encode(bytes(n)).decode(), "integer": lambda n: n}
        if make := make.get(kind):
            if kind == "integer" and "min" in about or least > 0:
                yield make(least - 1), "constraint"
            if most is not None:
                yield make(most + 1), "constraint"
        if kind == "string" and about.get("pattern") and not re.fullmatch(about["pattern"], "\u0001 \n"):
            yield "\u0001 \n", "constraint"

    # --- answers ----------------------------------------------------------------------------------

    def flaws(self, operation, body):
        """What in an answer is not as the model says."""
        output = self.operations[operation].get("output")
        if not body:
            required = output and self.required(output["shape"])
            return ["empty"] if required else []
        return list(self.unfit(output["shape"], json.loads(body), "")) if output else ["a body"]

    def unfit(self, shape, value, path):
        about = self.shapes[shape]
        if not isinstance(value, TYPES[about["type"]]) or isinstance(value, bool) != (about["type"] == "boolean"):
            yield f"{path}: {value!r} is no {about['type']}"
            return
        match about["type"]:
            case "structure":
                for name in self.required(shape):
                    if name not in value:
                        yield f"{path}.{name}: missing"
                for name, inner in value.items():
                    if name not in about["members"]:
                        yield f"{path}.{name}: not in the model"
                    else:
                        yield from self.unfit(about["members"][name]["shape"], inner, f"{path}.{name}")
            case "list":
                for inner in value:
                    yield from self.unfit(about["member"]["shape"], inner, f"{path}[]")
            case "map":
                for inner in value.values():
                    yield from self.unfit(about["value"]["shape"], inner, f"{path}[]")
            case "string":
                # Deprecated, and its list frozen: newer specs stand there as they do in KeySpec.
                if "enum" in about and value not in about["enum"] and shape != "CustomerMasterKeySpec":
                    yield f"{path}: {value!r} is not in the enumeration"
                # AWS's own answers leave out some patterns' corner cases; lengths they keep.
                yield from size(about, len(value), path)
            case "blob":
                try:
                    yield from size(about, len(base64.b64decode(value, validate=True)), path)
                except binascii.Error:
                    yield f"{path}: {value!r} is not base64"
            case "integer":
                yield from size(about, value, path)


def size(about, found, path):
    if not about.get("min", found) <= found <= about.get("max", found):
        yield f"{path}: {found} is not between {about.get('min')} and {about.get('max')}"


TYPES = {
    "structure": dict,
    "map": dict,
    "list": list,
    "string": str,
    "blob": str,
    "integer": int,
    "boolean": bool,
    "timestamp": (int, float),
}

WRONG_TYPES = {
    "structure": ["text", 5, True, ["list"]],
    "map": ["text", 5, True, ["list"]],
    "list": ["text", 5, True, {"a": "b"}],
    "string": [5, True, ["list"], {"a": "b"}],
    "blob": [5, True, ["list"], {"a": "b"}, "not*base64"],
    "integer": ["text", True, ["list"], {"a": "b"}],
    "boolean": ["text", 5, ["list"], {"a": "b"}],
    "timestamp": [True, ["list"], {"a": "b"}],
}
