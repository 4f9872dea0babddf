"""Scenes: cameras in one convention, Gaussian splats and fields, rendered differentiably; their files; an analytic test object.

``orbit`` and :class:`CameraLaw` make :class:`Cameras`; ``render`` makes pictures of :class:`Splats` from them, and a
:class:`VolumeScene` those of a field such as :class:`VoxelGrid`. World: z up, +x the
object's front; cameras look along -z with y up; angles in degrees (:mod:`limbeck.scenes.cameras`). Nothing here is random:
what needs chance takes uniform or normal numbers from its caller.
"""

from limbeck.scenes.camera_laws import NUMBERS, CameraLaw, between
from limbeck.scenes.cameras import Cameras, angles, look_at, orbit, pinhole, turntable
from limbeck.scenes.conventions import CONVENTIONS, from_convention, from_pytorch3d, pytorch3d_matrices, to_convention
from limbeck.scenes.density import Edit, ScreenGradients, apply_edit, densify, prune, reindexed, reset_opacity
from limbeck.scenes.export import load_cameras, load_splats, save_cameras, save_gif, save_splats, save_strip
from limbeck.scenes.harmonics import sh_basis
from limbeck.scenes.head import Head, head_library, heads, render_head
from limbeck.scenes.rays import (
    Samples,
    ball_range,
    blurred,
    box_range,
    importance,
    merged,
    neus_thickness,
    ray_weights,
    stratified,
    volsdf_density,
)
from limbeck.scenes.scene import Scene, Seen, SplatScene
from limbeck.scenes.splats import Splats, ball, check_splats, splats_from_points
from limbeck.scenes.splatting import Rendered, project, render
from limbeck.scenes.viewpoint import Viewpoint, save_scene
from limbeck.scenes.views import VIEWS, PerpNeg, perp_neg, view_labels, view_prompts
from limbeck.scenes.volume import Field, VolumeRendered, VolumeScene
from limbeck.scenes.voxels import BLOBS, VoxelGrid, blob

__all__ = [
    "BLOBS",
    "CONVENTIONS",
    "NUMBERS",
    "VIEWS",
    "CameraLaw",
    "Cameras",
    "Edit",
    "Field",
    "Head",
    "PerpNeg",
    "Rendered",
    "Samples",
    "Scene",
    "ScreenGradients",
    "Seen",
    "SplatScene",
    "Splats",
    "Viewpoint",
    "VolumeRendered",
    "VolumeScene",
    "VoxelGrid",
    "angles",
    "apply_edit",
    "ball",
    "ball_range",
    "between",
    "blob",
    "blurred",
    "box_range",
    "check_splats",
    "densify",
    "from_convention",
    "from_pytorch3d",
    "head_library",
    "heads",
    "importance",
    "load_cameras",
    "load_splats",
    "look_at",
    "merged",
    "neus_thickness",
    "orbit",
    "perp_neg",
    "pinhole",
    "project",
    "prune",
    "pytorch3d_matrices",
    "ray_weights",
    "reindexed",
    "render",
    "render_head",
    "reset_opacity",
    "save_cameras",
    "save_gif",
    "save_scene",
    "save_splats",
    "save_strip",
    "sh_basis",
    "splats_from_points",
    "stratified",
    "to_convention",
    "turntable",
    "view_labels",
    "view_prompts",
    "volsdf_density",
]
