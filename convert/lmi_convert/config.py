"""`config.json`: numbers in range, or an error that names the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lmi.errors import FileFormatError, UnsupportedModel

from lmi_convert.checkpoint import read_json, shown

_NONE = object()


class Config:
    """A model's configuration. A getter takes several names where model types differ: the first one that is there counts.
    Absent and null are the same, and give `default` where there is one."""

    def __init__(self, values: Mapping, file: str = "config.json"):
        self.values = dict(values)
        self.file = file

    @classmethod
    def read(cls, folder: Path) -> Config:
        """That of the language part, where a model has several."""
        values = read_json(Path(folder) / "config.json")
        part = values.get("text_config")
        if isinstance(part, dict):
            values = {
                **values,
                **{k: v for k, v in part.items() if v is not None or k not in values},
                "architectures": values.get("architectures"),
            }
        return cls(values)

    def get(self, *names: str, default=None):
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        return default

    def integer(self, *names: str, default=_NONE, low: int = 1, high: int = 1 << 31) -> int:
        value = self.get(*names)
        if value is None:
            return self._absent(names, default)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(names, value, f"a whole number from {low:,} to {high:,}")
        return value

    def real(self, *names: str, default=_NONE, low: float = 0.0, high: float = 1e30) -> float:
        value = self.get(*names)
        if value is None:
            return self._absent(names, default)
        if type(value) not in (int, float) or not low <= value <= high:  # NaN is not, either
            raise self._wrong(names, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        value = self.get(*names)
        if value is None:
            return default
        if type(value) is not bool:
            raise self._wrong(names, value, "true or false")
        return value

    def table(self, *names: str) -> Config:
        value = self.get(*names, default={})
        if not isinstance(value, dict):
            raise self._wrong(names, value, "a table")
        return Config(value, f"{self.file}: {names[0]}")

    def reals(self, name: str, n: int) -> list[float]:
        value = self.get(name)
        good = isinstance(value, list) and all(type(v) in (int, float) and 1e-6 <= v <= 1e9 for v in value)
        if not good or len(value) != n:
            found = f"a list of {len(value)}" if isinstance(value, list) else value
            raise self._wrong((name,), found, f"{n} numbers from 1e-06 to 1e+09")
        return [float(v) for v in value]

    def require(self, *names: str, allowed: tuple, default, why: str) -> None:
        """Refuses a model that does what its family does not, rather than run it wrongly."""
        value = self.get(*names, default=default)
        if value not in allowed:
            raise UnsupportedModel(
                f"{self.file}: {names[0]} is {shown(value)}: {why}", f"Supported: {', '.join(map(repr, allowed))}"
            )

    def rope(self, layers: str = "full_attention") -> Config:
        """Parameters of the rotary embedding: `rope_theta`, `rope_type` and what belongs to it, wherever the config of this age
        of transformers has them. `layers`: of the kind of layers, where kinds differ."""
        found = dict(self.table("rope_scaling").values)
        newer = self.table("rope_parameters").values
        if isinstance(newer.get(layers), dict):
            newer = newer[layers]
        elif any(isinstance(v, dict) for v in newer.values()):
            newer = {}
        found.update({k: v for k, v in newer.items() if v is not None})
        found["rope_type"] = found.get("rope_type") or found.pop("type", None) or "default"
        for name in ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor"):
            if found.get(name) is None and self.get(name) is not None:
                found[name] = self.get(name)
        return Config(found, f"{self.file}: rope_scaling")

    def _absent(self, names: tuple, default):
        if default is _NONE:
            raise FileFormatError(f"{self.file}: {names[0]} is missing", "Download config.json again")
        return default

    def _wrong(self, names: tuple, value, wanted: str) -> FileFormatError:
        name = next((n for n in names if self.values.get(n) is not None), names[0])
        return FileFormatError(f"{self.file}: {name} is {shown(value)}, not {wanted}", "Download config.json again")
