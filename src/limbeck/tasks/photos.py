"""32x32 RGB crops of scikit-learn's two sample photos (china, flower): a small U-Net teacher and its one-step student.

Judged by 2,048 samples against 2,048 crops in the library's own image features, whitened on them: figures compare here alone.
Measured: teacher 28.4 with 35 calls after 225 CPU s; one-step DMD 36.5 and 38.3 (two seeds) after 75 CPU s, ratio 1.28 and 1.35.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.denoisers import Preconditioned
from limbeck.networks import UNet
from limbeck.noise import VE
from limbeck.tasks.features import image_features, whitened
from limbeck.tasks.task import Evaluator, Task
from limbeck.tasks.teacher import TeacherOptions, cached_teacher
from limbeck.training import OptimizerOptions, TensorSource

SIZE, COUNT, SCALES, SEED = 32, 4096, (2, 3, 4), 0
JUDGED = 2048
TEACHER = TeacherOptions(
    iterations=1000, batch=64,
    optimizer=OptimizerOptions(lr=2e-3, betas=(0.9, 0.99), warmup=100, decay="cosine", clip=1.0),
)  # fmt: skip
RATES = {"batch": 32, "student": {"lr": 2e-4}, "critic": {"lr": 4e-4}}  # those of the digits make the U-Net unstable
UNMEASURED = ("f-distill", "disback", "sim", "sfd", "swiftbrush", "snoopi", "tdm", "phased-dmd", "compose")
PREFERRED: dict[str, dict[str, Any]] = {
    "dmd": {"iterations": 240, **RATES},
    "sid": {"iterations": 350, **RATES},
    **{name: RATES for name in UNMEASURED},  # the rates alone, for the same reason
}


def load_crops(count: int = COUNT, size: int = SIZE, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Random crops (count, 3, size, size), float32 in [-1, 1], of scikit-learn's two photos, and which photo (count,), int64.

    Each crop is cut from a photo at 1/2, 1/3 or 1/4 of its size (by turns, as the photos), and half of them are mirrored.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(seed)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]  # china.jpg, flower.jpg, 640 x 427
    scaled = [
        [np.asarray(photo.resize((photo.width // s, photo.height // s), Image.Resampling.BOX)) for s in SCALES]
        for photo in photos
    ]
    labels = np.arange(count) % len(photos)
    crops = []
    for i, label in enumerate(labels):
        photo = scaled[label][i // len(photos) % len(SCALES)]
        top, left = (int(generator.integers(0, n - size + 1)) for n in photo.shape[:2])
        crop = photo[top : top + size, left : left + size]
        crops.append(crop[:, ::-1] if generator.random() < 0.5 else crop)
    images = torch.from_numpy(np.stack(crops)).movedim(-1, 1).float() / 127.5 - 1
    return images.contiguous(), torch.from_numpy(labels)


def photos(
    seed: int = 0, *, device: str = "cpu", dtype: str = "float32", quiet: bool = False, teacher: TeacherOptions | None = None
) -> Task:
    """The task; trains its teacher at the first call and caches it. The label says which photo. ``seed`` is the teacher's."""
    images, labels = load_crops()
    sigma_data = round(float(images.std()), 3)
    network = lambda: UNet((3, SIZE, SIZE), channels=32, multipliers=(1, 2, 2), patch=2, classes=2)  # noqa: E731
    source = TensorSource(images, {"label": labels})
    options = replace(teacher or TEACHER, seed=seed)
    fresh = lambda: Preconditioned(network(), VE(), "edm", sigma_data)  # noqa: E731
    model, facts = cached_teacher("photos", fresh, source, options, quiet)
    real = images[:JUDGED].to(device, getattr(torch, dtype))
    evaluator = Evaluator(whitened(image_features, real), real, JUDGED, {"label": labels[:JUDGED].to(device)}, chunk=256)
    placed = TensorSource(images.to(real.dtype), {"label": labels})
    return Task("photos", model.to(real), placed, tuple(images.shape[1:]), evaluator, sigma_data, network, facts=facts)
