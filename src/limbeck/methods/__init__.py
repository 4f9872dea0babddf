"""The methods, one room per system, and the one table that names them. Importing this imports no method."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from limbeck.errors import unknown


@dataclass(frozen=True)
class Entry:
    """One system: where it lives and what it needs."""

    id: str
    title: str
    arxiv: str
    year: int
    module: str
    """The module with METHOD, OPTIONS and PRESETS ("": a sampler, which distils nothing)."""
    aliases: tuple[str, ...] = ()
    data: str = "none"
    """Training images: none, optional or needed."""
    input_gradients: bool = False
    """Does it back-propagate through the teacher's input?"""
    networks: str = ""
    """Networks held at once."""

    def load(self) -> tuple[Any, Any, dict[str, Any]]:
        """(method class, options class, presets)."""
        room = import_module(self.module)
        return room.METHOD, room.OPTIONS, room.PRESETS


_GENERATORS = "limbeck.methods.generators"
METHODS: dict[str, Entry] = {
    entry.id: entry
    for entry in (
        Entry(
            "dmd", "Distribution matching distillation (DMD, DMD2)", "2311.18828", 2023, f"{_GENERATORS}.dmd", ("dmd2",),
            data="optional (GAN)", networks="teacher, student, critic (+ discriminator heads)",
        ),
        Entry(
            "sid", "Score identity distillation (SiD)", "2404.04057", 2024, f"{_GENERATORS}.sid",
            input_gradients=True, networks="teacher, student, critic",
        ),
        Entry(
            "f-distill", "f-divergence distribution matching (f-distill)", "2502.15681", 2025, f"{_GENERATORS}.f_distill",
            ("fdistill", "f-divergence"), data="needed", networks="teacher, student, critic, discriminator heads",
        ),
        Entry(
            "disback", "Distribution backtracking around any score distillation (DisBack)", "2408.15991", 2024,
            f"{_GENERATORS}.disback", data="optional (GAN)", networks="teacher, student, critic, target",
        ),
        Entry(
            "ict", "Consistency training (iCT, CT) and distillation (CD)", "2310.14189", 2023, f"{_GENERATORS}.ict",
            ("ct", "cd"), data="needed", networks="student (+ target, teacher)",
        ),
        Entry(
            "gaussian-score", "Analytical teleportation with the Gaussian score", "2412.09726", 2024, "",
            ("teleport", "teleportation"), data="statistics", networks="teacher",
        ),
    )
}  # fmt: skip


def find(name: str) -> Entry:
    """The entry of an id or alias, in any case, "_" for "-" allowed. Raises LimbeckError with the nearest id."""
    wanted = name.lower().replace("_", "-")
    for entry in METHODS.values():
        if wanted == entry.id or wanted in entry.aliases:
            return entry
    raise unknown("method", name, METHODS)


def preset_of(name: str, presets: dict[str, Any], preset: str | None) -> Any:
    """The options of a preset; an alias that is also a preset (``ct``) chooses it. Raises LimbeckError if unknown."""
    wanted = preset or (name if name in presets else "recommended")
    if wanted not in presets:
        raise unknown("preset", wanted, presets)
    return presets[wanted]


__all__ = ["METHODS", "Entry", "find", "preset_of"]
