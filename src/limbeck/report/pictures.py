"""Pictures inside the page: data URIs, tiny ones enlarged so that every browser shows their pixels as squares."""

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.errors import LimbeckError
from limbeck.report.grids import enlargement

if TYPE_CHECKING:
    from PIL import Image

DRAWN = 640  # pixels that a grid is enlarged to: twice its width on the page
TURNED = 256  # that of an animation
MOST = 1200  # wider grids are reduced to this and stored as JPEG


@dataclass(frozen=True)
class Picture:
    uri: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        """Wide grids go below one another, so that their columns meet."""
        return self.width > 1.6 * self.height


def picture(path: Path) -> Picture:
    """The grid at ``path``, or the first frame of an animation, ready for a page.

    Raises:
        LimbeckError: the file is no picture.
    """
    from PIL import Image

    image = _read(path)
    factor = enlargement(image.width, DRAWN)
    buffer = BytesIO()
    if image.width > MOST:
        image = image.convert("RGB").resize((MOST, round(image.height * MOST / image.width)))
        image.save(buffer, format="JPEG", quality=88)
        kind = "jpeg"
    else:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    return Picture(_uri(kind, buffer.getvalue()), image.width, image.height)


def animation(path: Path) -> Picture:
    """The GIF at ``path`` as it is, shown at a whole multiple of its size, about TURNED pixels wide.

    Raises:
        LimbeckError: the file is no picture, or another kind.
    """
    image = _read(path)
    if image.format != "GIF":
        raise LimbeckError(f"{path} is a {image.format}, not an animation: save frames with limbeck.scenes.save_gif")
    factor = enlargement(image.width, TURNED)
    return Picture(_uri("gif", path.read_bytes()), image.width * factor, image.height * factor)


def _read(path: Path) -> "Image.Image":
    from PIL import Image

    try:
        with Image.open(path) as file:
            file.load()
            return file
    except (OSError, SyntaxError, ValueError) as error:
        raise LimbeckError(f"{path} cannot be read as a picture ({error}): remove it or make it again") from None


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
