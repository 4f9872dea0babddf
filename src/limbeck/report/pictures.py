"""Pictures inside the page: data URIs, tiny ones enlarged so that every browser shows their pixels as squares."""

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.report.grids import enlargement

DRAWN = 640  # pixels that a grid is enlarged to: twice its width on the page
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
    """The grid at ``path``, ready for a page.

    Raises:
        LimbeckError: the file is no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = file.copy()
    except (OSError, SyntaxError, ValueError) as error:
        raise LimbeckError(f"{path} cannot be read as a picture ({error}): remove it or make it again") from None
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
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(uri, image.width, image.height)
