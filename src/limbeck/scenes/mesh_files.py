"""Meshes as files: OBJ with its MTL and PNG, GLB, and PLY with colours at the vertices; written for viewers and read back.

Colours and textures are rounded to 8 bits in all of them; positions are float32. OBJ and PLY are z up, as here. GLB is y up
with the front at +z, as glTF wants it (``y-up`` in :mod:`limbeck.scenes.conventions`): (x, y, z) -> (y, z, x).
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import LimbeckError, missing_extra, unknown
from limbeck.scenes.meshes import Mesh, check_mesh, joined

FORMATS = (".obj", ".glb", ".ply")


def save_mesh(path: Path | str, mesh: Mesh) -> None:
    """Write the mesh in the format that the path's ending names; an OBJ with a texture also NAME.mtl and NAME.png beside it.

    A texture goes before colours, of which PLY knows the vertices' only. Raises LimbeckError for numbers that are not finite or
    beyond float32, colours outside [0, 1], and another ending.
    """
    path = _known(path)
    check_mesh(mesh)
    mesh = Mesh(*(None if x is None else x.detach().cpu() for x in mesh))  # type: ignore[arg-type]
    if not bool(mesh.vertices.float().isfinite().all()):
        raise LimbeckError(f"{path}: some numbers are beyond float32, which is what the file holds")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".obj":
        _write_obj(path, mesh)
    elif path.suffix == ".ply":
        if mesh.texture is not None and mesh.colours is None:
            raise LimbeckError(f"{path}: a PLY holds colours of vertices and no texture; write .obj or .glb, or give colours")
        _as_trimesh(mesh.vertices, mesh.faces, mesh.colours).export(path)
    else:
        _as_glb(mesh).export(path)


def load_mesh(path: Path | str) -> Mesh:
    """The mesh of an OBJ, GLB or PLY, positions in float32; vertices that a texture's seams had doubled are one again,
    and faces that lie in one place are gone then.

    Several parts come back as one mesh. Raises LimbeckError where the file is damaged or has no faces.
    """
    path = _known(path)
    trimesh = _trimesh()
    if not path.is_file():
        raise LimbeckError(f"{path} is not there: give the path of an OBJ, GLB or PLY file")
    try:
        found = trimesh.load_mesh(path, process=False)
        vertices = torch.from_numpy(np.array(found.vertices, dtype=np.float32))
        faces = torch.from_numpy(np.array(found.faces, dtype=np.int64))
    except Exception as error:  # whatever its readers stumble over
        raise LimbeckError(f"{path} cannot be read as a mesh ({error!r}): write it again") from error
    if path.suffix == ".glb":
        vertices = vertices.roll(1, 1)
    try:
        check_mesh(Mesh(vertices, faces))
        mesh = _painted(vertices, faces, found.visual)
        check_mesh(mesh)
    except LimbeckError as error:
        raise LimbeckError(f"{path}: {error}") from error
    return mesh


def _known(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix not in FORMATS:
        raise unknown("mesh format", path.suffix, FORMATS)
    return path


def _trimesh() -> ModuleType:
    try:
        import trimesh
    except ImportError as error:
        raise missing_extra("scenes", "GLB, PLY and reading meshes need trimesh") from error
    return trimesh


def _painted(vertices: Tensor, faces: Tensor, visual: Any) -> Mesh:
    """With the texture or the colours of trimesh's visual."""
    if visual.kind == "texture" and visual.uv is not None:
        material = visual.material
        picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        if picture is not None:
            texture = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32)) / 255
            uv = torch.from_numpy(np.array(visual.uv, dtype=np.float32))[faces]
            _, place = torch.unique(vertices, dim=0, return_inverse=True)
            first = torch.full_like(place, len(place)).scatter_reduce(0, place, torch.arange(len(place)), "amin")
            return joined(Mesh(vertices, faces, uv=uv, texture=texture), first[place])
    if visual.kind == "vertex":
        return Mesh(vertices, faces, torch.from_numpy(np.array(visual.vertex_colors[:, :3], dtype=np.float32)) / 255)
    return Mesh(vertices, faces)


def _as_trimesh(vertices: Tensor, faces: Tensor, colours: Tensor | None = None, visual: Any = None) -> Any:
    levels = None if colours is None else _levels(colours)
    return _trimesh().Trimesh(
        vertices.float().numpy(), faces.numpy(), vertex_colors=levels, visual=visual, process=False, validate=False
    )


def _as_glb(mesh: Mesh) -> Any:
    turned = mesh.vertices.roll(-1, 1)
    if mesh.texture is None or mesh.uv is None:
        return _as_trimesh(turned, mesh.faces, mesh.colours)
    from PIL import Image

    visuals = _trimesh().visual
    picture = Image.fromarray(_levels(mesh.texture))
    material = visuals.material.PBRMaterial(baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0)
    split = torch.arange(3 * len(mesh.faces)).reshape(-1, 3)  # a vertex has one uv in this format
    painted = visuals.TextureVisuals(uv=mesh.uv.reshape(-1, 2).float().numpy(), material=material)
    return _as_trimesh(turned[mesh.faces].reshape(-1, 3), split, visual=painted)


def _write_obj(path: Path, mesh: Mesh) -> None:
    """By hand: here corners may have their own uv without doubling vertices, so that the surface stays closed."""
    lines = []
    rows = mesh.vertices.float()
    textured = mesh.texture is not None and mesh.uv is not None
    if mesh.colours is not None and not textured:
        rows = torch.cat([rows, (mesh.colours * 255).round().float() / 255], 1)
    lines += ["v " + " ".join(f"{x:.9g}" for x in row) for row in rows.tolist()]
    faces = (mesh.faces + 1).tolist()
    if mesh.texture is not None and mesh.uv is not None:
        from PIL import Image

        Image.fromarray(_levels(mesh.texture)).save(path.with_suffix(".png"), format="PNG")
        described = ["newmtl painted", "Ka 1 1 1", "Kd 1 1 1", "Ks 0 0 0", f"map_Kd {path.stem}.png"]
        path.with_suffix(".mtl").write_text("\n".join(described) + "\n")
        lines = [f"mtllib {path.stem}.mtl", *lines, *(f"vt {u:.9g} {v:.9g}" for u, v in mesh.uv.reshape(-1, 2).tolist())]
        lines += ["usemtl painted"]
        lines += ["f " + " ".join(f"{a}/{3 * i + j + 1}" for j, a in enumerate(face)) for i, face in enumerate(faces)]
    else:
        lines += [f"f {a} {b} {c}" for a, b, c in faces]
    path.write_text("\n".join(lines) + "\n")


def _levels(colours: Tensor) -> np.ndarray:
    return (colours.double() * 255).round().to(torch.uint8).numpy()
