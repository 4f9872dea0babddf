"""Pipelines of diffusers, a folder on disk or an object: the network, its process, its conditions, and the way to pictures.

Components are loaded one by one when they are needed, with diffusers' own ``from_pretrained``, from safetensors alone; text
encoders and autoencoders are let go again. Only the classes below are known, and no code from the folder is run.
"""

import gc
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError, missing_extra, unknown
from limbeck.interop.folders import Folder, known, quiet_libraries, read_folder
from limbeck.interop.latents import FRAMES_FIRST, PICTURES, VIDEO, decoded, encoded, reduction
from limbeck.interop.models import DiffusersNetwork
from limbeck.interop.schedules import Schedule, diffusers_denoiser, read_schedule
from limbeck.interop.sizes import PACKED, frames, pixels, sampled_shift
from limbeck.interop.texts import TEXTS, encode_prompts
from limbeck.samplers import Experts

Said = Callable[[int], None]  # hears how many are done
CLASSES = ("DDPMPipeline", "DDIMPipeline", "DiTPipeline", *TEXTS)
"""The classes of pipelines that are known; beside them bare models without text."""
BARE = ("UNet2DModel",)


def unheard(done: int) -> None:
    """Nobody hears how many are done."""


@dataclass
class Pipeline:
    """A pipeline to distil. ``folder`` on disk, or ``given``, the components of an object in memory.

    ``height``, ``width`` (pixels) and ``num_frames``: None is what the pipeline makes without being asked. ``guidance``: the
    scale that networks with an embedding of it are told, always. ``tokens``: longest text (None: the pipeline's own).
    """

    kind: str
    folder: Folder | None = None
    given: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    guidance: float = 3.5
    tokens: int | None = None
    dtype: torch.dtype = torch.float32
    text_dtype: torch.dtype = torch.float32
    device: str = "cpu"
    loaded: list[str] = field(default_factory=list)
    """Which components were loaded from disk, in order."""

    # -- components ---------------------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Is there such a component?"""
        return self.given.get(name) is not None or (self.folder is not None and name in self.folder.components)

    def component(self, name: str, dtype: torch.dtype | None = None) -> Any:
        """A component: that of the object, or loaded anew."""
        if self.folder is None:
            return self.given[name]
        self.loaded.append(name)
        return self.folder.load(name, dtype or self.dtype)

    def described(self, name: str) -> tuple[str, dict[str, Any]]:
        """(class, config) of a model, not loaded."""
        if self.folder is None:
            return type(self.given[name]).__name__, dict(self.given[name].config)
        return self.folder.components[name][1], self.folder.config(name)

    @cached_property
    def network_name(self) -> str:
        """What the denoising network is called in the pipeline."""
        return next(name for name in ("unet", "transformer", "model") if self.has(name))

    @cached_property
    def scheduler(self) -> Any:
        """The scheduler, which says what the network was trained on."""
        return self.component("scheduler")

    @cached_property
    def schedule(self) -> Schedule:
        """The process and the prediction type."""
        return read_schedule(self.scheduler)

    @cached_property
    def texts(self) -> bool:
        """Is it asked in words?"""
        return self.kind in TEXTS

    @cached_property
    def classes(self) -> int:
        """The number of classes of a class-conditional network, 0 without."""
        if self.texts:
            return 0
        kind, config = self.described(self.network_name)
        return int(config.get("num_embeds_ada_norm" if kind == "DiTTransformer2DModel" else "num_class_embeds") or 0)

    def denoiser(self, null: Cond | None = None) -> Any:
        """The network under its scheduler's process, in eval mode; two of them (``transformer_2``) as experts by noise.

        ``null``: the null condition of one sample, as :meth:`encode_text` gives it.
        """
        denoiser = diffusers_denoiser(self.network(self.network_name, null), self.scheduler)
        if not self.has("transformer_2"):
            return denoiser.eval()
        ratio = self.settings.get("boundary_ratio")
        if ratio is None:
            raise LimbeckError(
                "model_index.json has a transformer_2, but no boundary_ratio: at which noise it takes over is not known"
            )
        process, low = denoiser.process, diffusers_denoiser(self.network("transformer_2", null), self.scheduler)
        # the first serves t >= ratio, the second t < ratio; experts serve intervals that are closed above
        edge = float(ratio) * (1 - 1e-12)
        return Experts([(process.t_min - 1, edge, low), (edge, process.t_max, denoiser)]).eval()

    def network(self, name: str, null: Cond | None = None) -> DiffusersNetwork:
        """The raw network, its null condition and what it is told of every sample."""
        model = self.component(name)
        if null is None and self.classes:  # a table of class embeddings may have a row more for "no class"
            has = self.described(name)[0] == "DiTTransformer2DModel"
            null = {"label": torch.tensor(self.classes)} if has else None
        elif null is None and not self.texts:
            null = {}
        return DiffusersNetwork(model, null, self.fixed(model))

    def fixed(self, model: Any) -> Cond:
        """What a network is told of every sample alike: a guidance scale, the size of its pictures."""
        fixed: dict[str, Tensor] = {}
        if model.config.get("guidance_embeds"):
            fixed["guidance"] = torch.tensor(float(self.guidance))
        if getattr(model, "use_additional_conditions", False):  # PixArt at 1024
            height, width = self.size
            fixed["resolution"] = torch.tensor([float(height), float(width)])
            fixed["aspect_ratio"] = torch.tensor([height / width])
        return fixed

    # -- shapes -------------------------------------------------------------------------------------------------------

    @cached_property
    def reduction(self) -> tuple[int, int]:
        """(space, time): how many pixels and frames one latent stands for."""
        return reduction(*self.described("vae")) if self.has("vae") else (1, 1)

    @cached_property
    def vae_kind(self) -> str:
        """The autoencoder's class ("": the network sees pixels)."""
        return self.described("vae")[0] if self.has("vae") else ""

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        config = self.described(self.network_name)[1]
        return pixels(self.kind, config, self.reduction[0], self.height, self.width)

    @cached_property
    def frames(self) -> int | None:
        """The frames of a video (None: pictures)."""
        if self.vae_kind not in VIDEO or self.vae_kind in PICTURES:
            if self.num_frames is not None:
                raise LimbeckError(f"num_frames={self.num_frames}: a {self.kind} makes pictures; leave it out")
            return None
        return frames(self.kind, self.described(self.network_name)[1], self.reduction[1], self.num_frames)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of what the network denoises: (C, H, W), or of videos (C, F, H, W), CogVideoX's (F, C, H, W)."""
        channels = self.described(self.network_name)[1]["in_channels"] // (4 if self.kind in PACKED else 1)
        (height, width), (space, time) = self.size, self.reduction
        sides = height // space, width // space
        if self.frames is None:
            return (channels, *sides)
        count = (self.frames - 1) // time + 1
        return (count, channels, *sides) if self.vae_kind in FRAMES_FIRST else (channels, count, *sides)

    @cached_property
    def shift(self) -> float:
        """The flow shift with which the scheduler samples at this size (1: none, or no flow)."""
        return sampled_shift(self.scheduler.config, self.shape[-1] * self.shape[-2] // 4)

    # -- text and pictures --------------------------------------------------------------------------------------------

    def encode_text(self, prompts: Sequence[str], said: Said = unheard) -> tuple[Cond, Cond]:
        """(conditions of the prompts (N, ...), null condition of one sample), on the CPU; see `encode_prompts`."""
        if not self.has("text_encoder"):
            raise LimbeckError(
                f"this {self.kind} has no text_encoder, which prompts are encoded with once; add it to the pipeline"
            )
        with ExitStack() as stack:
            pipe = self._text_pipeline()
            for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
                if getattr(pipe, name, None) is not None:
                    stack.enter_context(placed(getattr(pipe, name), self.device))
            found = encode_prompts(TEXTS[self.kind], pipe, prompts, self.size, self.tokens, said=said)
        del pipe
        gc.collect()  # text encoders are large, and pipelines may hold them in circles
        return found

    def _text_pipeline(self) -> Any:
        """The stock pipeline with its tokenizers and text encoders alone."""
        import diffusers

        with quiet_libraries():
            cls = getattr(diffusers, self.kind)
        names = set(inspect.signature(cls.__init__).parameters) - {"self"}
        parts = {
            n: self.component(n, self.text_dtype)
            for n in sorted(names)
            if n.startswith(("text_encoder", "tokenizer")) and self.has(n)
        }
        needed = {
            n: None
            for n, p in inspect.signature(cls.__init__).parameters.items()
            if n != "self" and n not in parts and p.default is inspect.Parameter.empty
        }
        plain = {n: v for n, v in self.settings.items() if n in names and not n.startswith("_")}
        with quiet_libraries():
            return cls(**{**needed, **plain, **parts})

    def encode(self, images: Tensor, said: Said = unheard, chunk: int = 8) -> Tensor:
        """The latents (N, *shape), on the CPU, of pictures (N, C, H, W) in [-1, 1] at :attr:`size`."""
        if not self.has("vae"):
            return images
        with placed(self.component("vae"), self.device) as vae:
            return _by_chunks(lambda x: encoded(vae, x), images, self.device, chunk, said)

    def decode(self, latents: Tensor, said: Said = unheard, chunk: int = 8) -> Tensor:
        """Pictures (N, C, H, W) or videos (N, C, F, H, W), on the CPU in the latents' dtype, not clamped."""
        if not self.has("vae"):
            return latents
        with placed(self.component("vae"), self.device) as vae:
            return _by_chunks(lambda x: decoded(vae, x), latents, self.device, chunk, said).to(latents.dtype)

    def digest(self, *names: str) -> str | None:
        """sha256 of the files of those components that there are (None: an object, which has no files)."""
        if self.folder is None:
            return None
        return self.folder.digest(n for n in sorted(self.folder.components) if n.startswith(names))


@contextmanager
def placed(model: Any, device: str) -> Iterator[Any]:
    """A model on the device for as long as it is needed, then back where it was."""
    before = next(model.parameters()).device
    try:
        yield model.to(device)
    finally:
        model.to(before)


def _by_chunks(function: Callable[[Tensor], Tensor], x: Tensor, device: str, chunk: int, said: Said) -> Tensor:
    parts, done = [], 0
    for part in x.split(chunk):
        parts.append(function(part.to(device)).cpu())
        said(done := done + len(part))
    return torch.cat(parts)


def open_pipeline(model: Any, **how: Any) -> Pipeline:
    """A pipeline from a folder or from an object of diffusers; ``how``: the options of :class:`Pipeline`.

    Raises LimbeckError for folders that are none, classes that are not known, and missing diffusers.
    """
    try:
        import diffusers  # noqa: F401
    except ImportError:
        raise missing_extra("diffusers", "pipelines need diffusers") from None
    if not isinstance(model, (str, Path)):
        components = getattr(model, "components", None)
        if not isinstance(components, dict):
            raise LimbeckError(f"the model is a {type(model).__name__}; give a pipeline of diffusers or its folder")
        kind = type(model).__name__
        known(kind, CLASSES)
        settings = {n: v for n, v in model.config.items() if n not in components}
        return Pipeline(kind, None, dict(components), settings, **how)
    folder = read_folder(model)
    if folder.kind == "":
        name = folder.components["model"][1]
        if name not in BARE:
            raise unknown(f"bare model in {folder.path} (others need their whole pipeline's folder)", name, BARE)
    else:
        known(folder.kind, CLASSES)
    return Pipeline(folder.kind or folder.components["model"][1], folder, {}, folder.settings, **how)


__all__ = ["BARE", "CLASSES", "Pipeline", "open_pipeline"]
