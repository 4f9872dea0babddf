"""Splats with the view that a picture of them begins with: two files of a run's folder that its report shows."""

import json
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.scenes.export import save_splats
from limbeck.scenes.splats import Splats


@dataclass(frozen=True)
class Viewpoint:
    """Where a viewer begins, at azimuth 0, and what is behind the splats.

    ``elevation`` and ``fovy`` in degrees, ``distance`` to the origin in world units; ``background`` red, green and blue in
    [0, 1]. Raises LimbeckError for an elevation beyond 90, a distance that is not positive, a field of view outside (0, 180).
    """

    elevation: float = 0.0
    distance: float = 2.5
    fovy: float = 49.1
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name, value, allowed, fine in (
            ("elevation", self.elevation, "[-90, 90]", abs(self.elevation) <= 90),
            ("distance", self.distance, "the positive finite numbers", self.distance > 0 and isfinite(self.distance)),
            ("fovy", self.fovy, "(0, 180)", 0 < self.fovy < 180),
            ("background", self.background, "[0, 1] in each of red, green and blue", all(0 <= c <= 1 for c in self.background)),
        ):
            if not fine:
                raise LimbeckError(f"{name}={value} of a scene: it must lie in {allowed}")


def save_scene(folder: Path | str, splats: Splats, viewpoint: Viewpoint) -> None:
    """Write ``scene.ply`` and ``scene.json`` into a run's folder, for its report to show."""
    save_splats(Path(folder) / "scene.ply", splats)
    (Path(folder) / "scene.json").write_text(json.dumps(asdict(viewpoint), indent=1) + "\n")
