"""Scenes: cameras in one convention; Gaussian splats, fields and meshes, rendered differentiably; their files; a test object.

``orbit`` and :class:`CameraLaw` make :class:`Cameras`, ``render`` makes pictures of :class:`Splats` from them. World: z up, +x the
object's front; cameras look along -z with y up; angles in degrees (:mod:`limbeck.scenes.cameras`). Nothing here is random but the
first weights of a :class:`HashField`: what else needs chance takes uniform or normal numbers from its caller.

A :class:`VolumeScene` makes pictures of a field of density and colour: of one or several :class:`VoxelGrid`, or a :class:`HashField`.

``render_mesh`` makes pictures of a :class:`Mesh` in torch; a :class:`MeshScene` learns one, as the surface of a field on tetrahedra
(:class:`DMTet`) with a colour at each point.
"""

from limbeck.scenes.camera_laws import NUMBERS, CameraLaw, between
from limbeck.scenes.cameras import Cameras, angles, look_at, orbit, pinhole, turntable
from limbeck.scenes.conventions import CONVENTIONS, from_convention, from_pytorch3d, pytorch3d_matrices, to_convention
from limbeck.scenes.density import Edit, ScreenGradients, apply_edit, densify, prune, reindexed, reset_opacity
from limbeck.scenes.export import load_cameras, load_splats, save_cameras, save_gif, save_splats, save_strip
from limbeck.scenes.harmonics import sh_basis
from limbeck.scenes.hashgrid import HashField, HashGrid, contracted
from limbeck.scenes.head import Head, head_library, heads, render_head
from limbeck.scenes.mesh_files import load_mesh, save_mesh
from limbeck.scenes.mesh_scene import ColourGrid, MeshRendered, MeshScene, render_mesh
from limbeck.scenes.meshes import Mesh, check_mesh, collapsed, is_watertight, laplacian, largest_component, normal_consistency
from limbeck.scenes.occupancy import Occupancy
from limbeck.scenes.outlines import soft_outlines
from limbeck.scenes.rasterise import Fragments, interpolate, rasterise
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
from limbeck.scenes.regularisers import (
    binary_entropy,
    depth_variance,
    eikonal,
    mean_scale,
    opaqueness,
    orientation,
    sparsity,
    total_variation,
)
from limbeck.scenes.scene import Scene, Seen, SplatScene
from limbeck.scenes.shading import SHADINGS, Lit, density_normals, gradient, gradient_by_differences
from limbeck.scenes.splats import Splats, ball, check_splats, splats_from_points
from limbeck.scenes.splatting import Rendered, project, render
from limbeck.scenes.tetrahedra import DMTet, TetGrid, marching_tetrahedra, mesh_from_field, tet_grid
from limbeck.scenes.texture import baked, sample_texture
from limbeck.scenes.viewpoint import Viewpoint, save_scene
from limbeck.scenes.views import VIEWS, PerpNeg, perp_neg, view_labels, view_prompts
from limbeck.scenes.volume import Field, VolumeRendered, VolumeScene
from limbeck.scenes.voxels import BLOBS, VoxelGrid, blob

__all__ = [
    "BLOBS",
    "CONVENTIONS",
    "NUMBERS",
    "SHADINGS",
    "VIEWS",
    "CameraLaw",
    "Cameras",
    "ColourGrid",
    "DMTet",
    "Edit",
    "Field",
    "Fragments",
    "HashField",
    "HashGrid",
    "Head",
    "Lit",
    "Mesh",
    "MeshRendered",
    "MeshScene",
    "Occupancy",
    "PerpNeg",
    "Rendered",
    "Samples",
    "Scene",
    "ScreenGradients",
    "Seen",
    "SplatScene",
    "Splats",
    "TetGrid",
    "Viewpoint",
    "VolumeRendered",
    "VolumeScene",
    "VoxelGrid",
    "angles",
    "apply_edit",
    "baked",
    "ball",
    "ball_range",
    "between",
    "binary_entropy",
    "blob",
    "blurred",
    "box_range",
    "check_mesh",
    "check_splats",
    "collapsed",
    "contracted",
    "densify",
    "density_normals",
    "depth_variance",
    "eikonal",
    "from_convention",
    "from_pytorch3d",
    "gradient",
    "gradient_by_differences",
    "head_library",
    "heads",
    "importance",
    "interpolate",
    "is_watertight",
    "laplacian",
    "largest_component",
    "load_cameras",
    "load_mesh",
    "load_splats",
    "look_at",
    "marching_tetrahedra",
    "mean_scale",
    "merged",
    "mesh_from_field",
    "neus_thickness",
    "normal_consistency",
    "opaqueness",
    "orbit",
    "orientation",
    "perp_neg",
    "pinhole",
    "project",
    "prune",
    "pytorch3d_matrices",
    "rasterise",
    "ray_weights",
    "reindexed",
    "render",
    "render_head",
    "render_mesh",
    "reset_opacity",
    "sample_texture",
    "save_cameras",
    "save_gif",
    "save_mesh",
    "save_scene",
    "save_splats",
    "save_strip",
    "sh_basis",
    "soft_outlines",
    "sparsity",
    "splats_from_points",
    "stratified",
    "tet_grid",
    "to_convention",
    "total_variation",
    "turntable",
    "view_labels",
    "view_prompts",
    "volsdf_density",
]
