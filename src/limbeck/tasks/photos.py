"""Crops."""

import numpy as np
import torch
from torch import Tensor

SIZE, COUNT, SCALES, SEED = 32, 4096, (2, 3, 4), 0


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
